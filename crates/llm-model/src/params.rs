//! The weights of a model by name, frozen or trainable.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::Init;
use llm_files::WeightDtype;
use llm_kernels::{Precision, QuantizedWeight};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::lora::Adapter;
use crate::shapes::{Role, TensorSpec};
use crate::weight::Weight;
use crate::{Error, Head, ModelConfig, Result};

/// Weights by the decoder's name ([`ModelConfig::tensor_specs`]), and the active LoRA adapters.
#[derive(Debug, Clone, Default)]
pub struct Params {
    weights: BTreeMap<String, Weight>,
    /// Compute precision of the matmuls with dense weights.
    precision: Precision,
    /// The active LoRA adapters, the lowest first. With an adapter the base weights are frozen, and only the uppermost adapter can
    /// be trainable.
    adapters: Vec<Adapter>,
}

impl Params {
    /// Frozen parameters.
    pub fn new(tensors: BTreeMap<String, Tensor>) -> Self {
        Self::from_weights(tensors.into_iter().map(|(name, tensor)| (name, Weight::Dense(tensor))).collect())
    }

    /// Parameters without an adapter.
    pub fn from_weights(weights: BTreeMap<String, Weight>) -> Self {
        Self { weights, ..Self::default() }
    }

    /// Random parameters for `config` and `head` ([`TensorSpec::init`]). Each tensor has its own random stream of `seed`.
    pub fn init(config: &ModelConfig, head: Head, seed: u64) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for spec in config.tensor_specs(head) {
            let tensor = init_tensor(&spec, seed)?;
            tensors.insert(spec.name, tensor);
        }
        Ok(Self::new(tensors))
    }

    /// A trainable copy; training does not change the original. With active adapters only the uppermost is trainable.
    pub fn trainable(&self) -> Result<Self> {
        let Some((last, lower)) = self.adapters.split_last() else { return self.map(Weight::trainable) };
        let adapters = lower.iter().cloned().chain([last.map(Weight::trainable)?]).collect();
        Ok(Self { adapters, ..self.clone() })
    }

    /// A frozen snapshot: trainable weights are copied, frozen ones are shared.
    pub fn frozen(&self) -> Result<Self> {
        self.map(Weight::frozen)
    }

    /// The same weights without gradients. Nothing is copied: training the originals changes these too.
    pub(crate) fn detached(&self) -> Result<Self> {
        self.map(|weight| Ok(weight.detached()))
    }

    /// Applies `f` to each weight, those of the adapters included.
    fn map(&self, f: impl Fn(&Weight) -> candle_core::Result<Weight>) -> Result<Self> {
        let weights = self.weights.iter().map(|(name, weight)| Ok((name.clone(), f(weight)?)));
        let adapters = self.adapters.iter().map(|adapter| adapter.map(&f)).collect::<Result<_>>()?;
        Ok(Self { weights: weights.collect::<Result<_>>()?, precision: self.precision, adapters })
    }

    /// The same weights, frozen, with `adapters` as the active adapters, the lowest first.
    pub(crate) fn with_adapters(&self, adapters: Vec<Adapter>) -> Result<Self> {
        Ok(Self { adapters, ..Self { adapters: Vec::new(), ..self.clone() }.frozen()? })
    }

    /// The active adapters, the lowest first.
    pub(crate) fn adapters(&self) -> &[Adapter] {
        &self.adapters
    }

    /// Adds or replaces a weight.
    pub(crate) fn insert(&mut self, name: String, weight: impl Into<Weight>) {
        self.weights.insert(name, weight.into());
    }

    /// Removes a weight.
    pub(crate) fn remove(&mut self, name: &str) {
        self.weights.remove(name);
    }

    /// A frozen copy with the matrices converted to `dtype`, one at a time. Matrices already in `dtype` are shared.
    ///
    /// Norms, biases and routers stay f32. A block format that does not divide the rows of a matrix falls back to `q8_0`, then
    /// to f32.
    pub(crate) fn with_matrices_in(&self, dtype: WeightDtype, specs: Vec<TensorSpec>) -> Result<Self> {
        let adapters = self.adapters.iter().map(|adapter| adapter.map(Weight::frozen)).collect::<Result<_>>()?;
        let mut rounded = Self { precision: self.precision, adapters, ..Self::default() };
        for spec in specs {
            let weight = self.base(&spec.name)?;
            let unchanged = match (weight, dtype) {
                (Weight::Mapped(w), WeightDtype::F32) => w.dtype() == DType::F32,
                (Weight::Mapped(w), WeightDtype::Bf16) => w.dtype() == DType::BF16,
                (Weight::Quantized(w), WeightDtype::Quantized(format)) => w.format() == format,
                _ => spec.role == Role::Router,
            };
            if unchanged {
                rounded.insert(spec.name, weight.clone());
                continue;
            }
            let tensor = weight.to_dense()?.detach();
            let converted = match spec.dtype_in(dtype) {
                WeightDtype::F32 => Weight::Dense(tensor.copy()?),
                WeightDtype::Bf16 => Weight::Dense(tensor.to_dtype(DType::BF16)?),
                WeightDtype::Quantized(format) => Weight::Quantized(QuantizedWeight::quantize(&tensor, format)?),
                WeightDtype::F16 => {
                    let message = "f16 is supported in files only; choose f32 or bf16 for a model in memory";
                    return Err(Error::Input(message.to_owned()));
                }
            };
            rounded.insert(spec.name, converted);
        }
        Ok(rounded)
    }

    /// A frozen copy with each matrix in the dtype that it has in `base`, f32 if that is quantised. Vectors, which are f32 in
    /// memory, get the dtype of the embedding if that does not change them, as when they were read from a file in that dtype.
    pub(crate) fn with_dtypes_of(&self, base: &Self) -> Result<Self> {
        let of_matrices = base.get("model.embed_tokens.weight")?.dtype();
        let mut cast = Self { precision: self.precision, ..Self::default() };
        for (name, weight) in self.iter() {
            let dtype = base.weights.get(name).map_or(of_matrices, Weight::dtype);
            let weight = match weight {
                Weight::Dense(vector) if vector.rank() == 1 => without_loss(vector, of_matrices)?.into(),
                Weight::Quantized(_) => Weight::Dense(weight.to_dense()?.to_dtype(dtype)?),
                _ if weight.dtype() != dtype => Weight::Dense(weight.to_dense()?.detach().to_dtype(dtype)?),
                _ => weight.frozen()?,
            };
            cast.insert(name.to_owned(), weight);
        }
        Ok(cast)
    }

    /// The device of the weights.
    pub(crate) fn device(&self) -> Device {
        // Norms are tensors in every model.
        let tensor = self.weights.values().find_map(Weight::tensor);
        tensor.map_or(Device::Cpu, |tensor| tensor.device().clone())
    }

    /// A copy on `device` ([`Weight::to_device`]).
    pub(crate) fn to_device(&self, device: &Device) -> Result<Self> {
        self.map(|weight| weight.to_device(device))
    }

    /// Parameters for another head: the weights of the decoder are shared, frozen; a missing score head is initialised from `seed`.
    pub fn for_head(&self, config: &ModelConfig, head: Head, seed: u64) -> Result<Self> {
        let mut weights = BTreeMap::new();
        for spec in config.tensor_specs(head) {
            let of_another_head = |weight: &&Weight| spec.role != Role::Score || weight.dims() == spec.shape;
            let weight = match self.weights.get(&spec.name).filter(of_another_head) {
                Some(weight) => weight.detached(),
                None if spec.role == Role::Score => init_tensor(&spec, seed)?.to_device(&self.device())?.into(),
                None => {
                    let name = spec.name;
                    let problems = vec![format!("tensor \"{name}\" is missing; only a score head can be initialised")];
                    return Err(Error::Tensors { origin: "parameters".to_owned(), problems });
                }
            };
            weights.insert(spec.name, weight);
        }
        Ok(Self::from_weights(weights))
    }

    /// The same parameters with matmuls in `precision` (mixed precision).
    pub(crate) fn in_precision(&self, precision: Precision) -> Self {
        Self { precision, ..self.clone() }
    }

    /// The compute precision of matmuls with dense weights.
    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    /// All weights of the model by name, without those of the adapter.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Weight)> {
        self.weights.iter().map(|(name, weight)| (name.as_str(), weight))
    }

    /// The weight `name`, or the copy of it that an active adapter trained as a whole; an error if it is missing.
    pub fn get(&self, name: &str) -> Result<&Weight> {
        let saved = self.adapters.iter().rev().find_map(|adapter| adapter.saved(name));
        saved.map_or_else(|| self.base(name), Ok)
    }

    /// The weight `name` of the model, without adapters; an error if it is missing.
    fn base(&self, name: &str) -> Result<&Weight> {
        self.weights.get(name).ok_or_else(|| missing(name))
    }

    /// The matrix of a tied output layer: the embedding, unless an active adapter trained the output layer as a whole. As in PEFT,
    /// a trained copy of the embedding alone does not change the output layer.
    pub(crate) fn tied_output(&self) -> Result<&Weight> {
        let saved = self.adapters.iter().rev().find_map(|adapter| adapter.saved("lm_head.weight"));
        saved.map_or_else(|| self.base("model.embed_tokens.weight"), Ok)
    }

    /// The trainable or dense tensor `name`; an error if it is missing, quantised or memory-mapped.
    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor> {
        self.get(name)?.tensor().cloned().ok_or_else(|| missing(name))
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.weights.contains_key(name)
    }

    /// The trainable and dense tensors by name, without those of the adapter. They share their data with the weights.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        self.weights.iter().filter_map(|(name, weight)| Some((name.clone(), weight.tensor()?.clone()))).collect()
    }

    /// The trainable variables by name, of the model or of its adapter; empty for a frozen model.
    pub fn vars(&self) -> BTreeMap<String, Var> {
        let adapter = self.adapters.iter().flat_map(|adapter| &adapter.weights);
        let var = |(name, weight): (&String, &Weight)| match weight {
            Weight::Trainable(var) => Some((name.clone(), var.clone())),
            Weight::Dense(_) | Weight::Mapped(_) | Weight::Quantized(_) => None,
        };
        self.weights.iter().chain(adapter).filter_map(var).collect()
    }

    /// Checks that the names and shapes match `config` and `head`; the error lists every difference.
    pub fn check(&self, config: &ModelConfig, head: Head, origin: &str) -> Result<()> {
        let specs = config.tensor_specs(head).into_iter();
        let expected: BTreeMap<String, Vec<usize>> = specs.map(|spec| (spec.name, spec.shape)).collect();
        let mut problems = Vec::new();
        for (name, shape) in &expected {
            match self.weights.get(name).map(Weight::dims) {
                None => problems.push(format!("tensor \"{name}\" {shape:?} is missing")),
                Some(found) if found != *shape => {
                    problems.push(format!("tensor \"{name}\" has shape {found:?}; config.json says {shape:?}"));
                }
                Some(_) => {}
            }
        }
        let extra = self.weights.keys().filter(|name| !expected.contains_key(*name));
        problems.extend(extra.map(|name| format!("tensor \"{name}\" is not part of this model")));
        if problems.is_empty() { Ok(()) } else { Err(Error::Tensors { origin: origin.to_owned(), problems }) }
    }
}

/// A vector in `dtype`, or unchanged if a value would change.
fn without_loss(vector: &Tensor, dtype: DType) -> Result<Tensor> {
    let narrow = vector.to_dtype(dtype)?;
    let differs = narrow.to_dtype(vector.dtype())?.ne(vector)?;
    let changed = differs.to_dtype(DType::U32)?.sum_all()?.to_scalar::<u32>()?;
    Ok(if changed == 0 { narrow } else { vector.clone() })
}

fn missing(name: &str) -> Error {
    Error::Tensors { origin: "parameters".to_owned(), problems: vec![format!("tensor \"{name}\" is missing")] }
}

/// The initial values of a tensor on the CPU, in f32.
fn init_tensor(spec: &TensorSpec, seed: u64) -> Result<Tensor> {
    let mut rng = stream(seed, &spec.name);
    let mut number = || match spec.init {
        Init::Randn { mean, stdev } => {
            let x: f64 = StandardNormal.sample(&mut rng as &mut dyn Rng);
            Ok((x * stdev + mean) as f32)
        }
        Init::Const(value) => Ok(value as f32),
        init => Err(Error::Input(format!("{}: {init:?} is not supported", spec.name))),
    };
    let data = (0..spec.elements()).map(|_| number()).collect::<Result<Vec<f32>>>()?;
    Ok(Tensor::from_vec(data, spec.shape.as_slice(), &Device::Cpu)?)
}

/// The random stream of a tensor. It is selected by the FNV-1a hash of the name, so it does not depend on other tensors.
pub(crate) fn stream(seed: u64, name: &str) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(hash(name));
    rng
}

/// The FNV-1a hash of a name.
pub(crate) fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
