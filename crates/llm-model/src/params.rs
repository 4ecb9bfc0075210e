//! The named tensors of a model, frozen or trainable.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use llm_kernels::{BlockFormat, MappedWeight, Precision, QuantizedWeight};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::lora::Adapter;
use crate::matrix::Matrix;
use crate::{Error, Head, ModelConfig, NormKind, Result};

/// Tensors by the decoder's name ([`ModelConfig::tensor_shapes`]). Trainable tensors are candle variables; frozen tensors
/// have no gradient.
#[derive(Debug, Clone, Default)]
pub struct Params {
    tensors: BTreeMap<String, Tensor>,
    vars: BTreeMap<String, Var>,
    quantized: BTreeMap<String, QuantizedWeight>,
    mapped: BTreeMap<String, MappedWeight>,
    /// Compute precision of the matmuls with dense weights.
    precision: Precision,
    /// The active LoRA adapter. With an adapter the base weights are frozen and only the adapter can be trainable.
    adapter: Option<Adapter>,
}

/// The dtype of the matrices of a frozen model in memory. Norms and biases are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightFormat {
    /// 4 bytes per element.
    F32,
    /// 2 bytes per element.
    Bf16,
    /// Block-quantised as in ggml. Matrices with a row length that is not a multiple of the block size fall back to
    /// `Q8_0`, and to f32 if the row length is not a multiple of 32.
    Quantized(BlockFormat),
}

impl WeightFormat {
    /// Bytes of the tensor `name` of `shape` in a model with weights in this format ([`crate::Model::frozen_as`]).
    pub(crate) fn bytes_of(self, name: &str, shape: &[usize]) -> u64 {
        let numbers = shape.iter().product::<usize>() as u64;
        let row = shape.last().copied().unwrap_or(0);
        let matrix = shape.len() == 2 && !is_router(name);
        match self {
            Self::Bf16 if matrix => numbers * 2,
            Self::Quantized(format) if matrix => match blocks_for(format, row) {
                Some(format) => numbers / format.elements() as u64 * format.bytes() as u64,
                None => numbers * 4,
            },
            _ => numbers * 4,
        }
    }
}

/// `format` if rows of `row` elements are a multiple of its block size, else `Q8_0` if that fits, else none.
pub(crate) fn blocks_for(format: BlockFormat, row: usize) -> Option<BlockFormat> {
    [format, BlockFormat::Q8_0].into_iter().find(|format| row.is_multiple_of(format.elements()))
}

/// Routers stay in f32: they are small, and rounding would change the selected experts.
fn is_router(name: &str) -> bool {
    name.ends_with("mlp.gate.weight")
}

impl Params {
    /// Frozen parameters.
    pub fn new(tensors: BTreeMap<String, Tensor>) -> Self {
        Self { tensors, ..Self::default() }
    }

    /// Random parameters for `config` and `head`: norm scales one, biases zero, matrices normal with standard deviation
    /// `initializer_range` (divided by `sqrt(2 · layers)` for `o_proj` and `down_proj`, as in GPT-2), the score head
    /// normal with `1 / sqrt(hidden_size + 1)` (Stiennon et al. 2020). Each tensor has its own random stream of `seed`.
    pub fn init(config: &ModelConfig, head: Head, seed: u64) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, shape) in config.tensor_shapes(head) {
            let tensor = init_tensor(config, &name, &shape, seed)?;
            tensors.insert(name, tensor);
        }
        Ok(Self::new(tensors))
    }

    /// A trainable copy; training does not change the original. With an active adapter only the adapter is trainable.
    pub fn trainable(&self) -> Result<Self> {
        let (mut copy, mut vars) = (self.clone(), BTreeMap::new());
        if copy.adapter.is_none() {
            for (name, mapped) in std::mem::take(&mut copy.mapped) {
                copy.tensors.insert(name, mapped.to_tensor()?);
            }
        }
        let trainable = copy.adapter.as_mut().map_or(&mut copy.tensors, |adapter| &mut adapter.tensors);
        for (name, tensor) in trainable {
            let var = Var::from_tensor(&tensor.detach().copy()?)?;
            tensor.clone_from(var.as_tensor());
            vars.insert(name.clone(), var);
        }
        copy.vars = vars;
        Ok(copy)
    }

    /// A frozen snapshot: trainable tensors are copied, frozen ones are shared.
    pub fn frozen(&self) -> Result<Self> {
        let tensors = frozen(&self.tensors)?;
        let adapter = self.adapter.as_ref().map(Adapter::frozen).transpose()?;
        Ok(Self { tensors, vars: BTreeMap::new(), adapter, ..self.clone() })
    }

    /// The same tensors without gradients. Nothing is copied: training the originals changes these too.
    pub(crate) fn detached(&self) -> Self {
        let tensors = detached(&self.tensors);
        Self { tensors, vars: BTreeMap::new(), adapter: self.adapter.as_ref().map(Adapter::detached), ..self.clone() }
    }

    /// The same weights, frozen, with `adapter` as the active adapter.
    pub(crate) fn with_adapter(&self, adapter: Option<Adapter>) -> Result<Self> {
        Ok(Self { adapter, ..Self { adapter: None, ..self.clone() }.frozen()? })
    }

    /// The active adapter.
    pub(crate) fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// Replaces a weight by a dense tensor.
    pub(crate) fn replace(&mut self, name: String, tensor: Tensor) {
        self.quantized.remove(&name);
        self.mapped.remove(&name);
        self.tensors.insert(name, tensor);
    }

    /// A frozen copy with the matrices converted to `format`, one at a time. Matrices already in `format` are shared.
    pub(crate) fn with_matrices_in(&self, format: WeightFormat) -> Result<Self> {
        let adapter = self.adapter.as_ref().map(Adapter::frozen).transpose()?;
        let mut rounded = Self { precision: self.precision, adapter, ..Self::default() };
        for name in self.tensors.keys().chain(self.quantized.keys()).chain(self.mapped.keys()) {
            let matrix = self.matrix(name)?;
            let to_convert = match (&matrix, format) {
                (Matrix::Mapped(w), WeightFormat::F32) if w.dtype() == DType::F32 => None,
                (Matrix::Mapped(w), WeightFormat::Bf16) if w.dtype() == DType::BF16 => None,
                (Matrix::Quantized(w), WeightFormat::Quantized(format)) if w.format() == format => None,
                _ if is_router(name) => None,
                _ => Some(matrix.dense()?.detach()),
            };
            let Some(tensor) = to_convert else {
                rounded.insert(name, matrix);
                continue;
            };
            let (row, precision) = (tensor.dims().last().copied().unwrap_or(0), self.precision);
            rounded.insert(
                name,
                match format {
                    _ if tensor.rank() != 2 => Matrix::Dense(tensor.copy()?, precision),
                    WeightFormat::F32 => Matrix::Dense(tensor.copy()?, precision),
                    WeightFormat::Bf16 => Matrix::Dense(tensor.to_dtype(DType::BF16)?, precision),
                    WeightFormat::Quantized(format) => match blocks_for(format, row) {
                        Some(format) => Matrix::Quantized(QuantizedWeight::quantize(&tensor, format)?),
                        None => Matrix::Dense(tensor.copy()?, precision),
                    },
                },
            );
        }
        Ok(rounded)
    }

    pub(crate) fn insert(&mut self, name: &str, matrix: Matrix) {
        match matrix {
            Matrix::Dense(w, _) => drop(self.tensors.insert(name.to_owned(), w)),
            Matrix::Quantized(w) => drop(self.quantized.insert(name.to_owned(), w)),
            Matrix::Mapped(w) => drop(self.mapped.insert(name.to_owned(), w)),
        }
    }

    /// Parameters for another head: the decoder is kept; a missing score head is initialised from `seed`.
    pub fn for_head(&self, config: &ModelConfig, head: Head, seed: u64) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, shape) in config.tensor_shapes(head) {
            let tensor = match self.matrix(&name).ok() {
                Some(matrix) => matrix.dense()?.detach(),
                None if name.starts_with("score.") => init_tensor(config, &name, &shape, seed)?,
                None => {
                    let problems = vec![format!("tensor \"{name}\" is missing; only a score head can be initialised")];
                    return Err(Error::Tensors { origin: "parameters".to_owned(), problems });
                }
            };
            tensors.insert(name, tensor);
        }
        Ok(Self::new(tensors))
    }

    /// The same parameters with matmuls in `precision` (mixed precision).
    pub(crate) fn in_precision(&self, precision: Precision) -> Self {
        Self { precision, ..self.clone() }
    }

    /// The dense tensor `name`; an error if it is missing, quantised or memory-mapped.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        self.tensors.get(name).cloned().ok_or_else(|| Error::Tensors {
            origin: "parameters".to_owned(),
            problems: vec![format!("tensor \"{name}\" is missing")],
        })
    }

    /// The weight `name` in any format.
    pub(crate) fn matrix(&self, name: &str) -> Result<Matrix> {
        if let Some(quantized) = self.quantized.get(name) {
            return Ok(Matrix::Quantized(quantized.clone()));
        }
        match self.mapped.get(name) {
            Some(mapped) => Ok(Matrix::Mapped(mapped.clone())),
            None => {
                let precision = if is_router(name) { Precision::F32 } else { self.precision };
                Ok(Matrix::Dense(self.get(name)?, precision))
            }
        }
    }

    /// The quantised matrices by name; they are not in [`Self::tensors`].
    pub fn quantized(&self) -> &BTreeMap<String, QuantizedWeight> {
        &self.quantized
    }

    /// The memory-mapped matrices by name; they are not in [`Self::tensors`].
    pub fn mapped(&self) -> &BTreeMap<String, MappedWeight> {
        &self.mapped
    }

    /// The dense tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// The trainable variables by name; empty for a frozen model.
    pub fn vars(&self) -> &BTreeMap<String, Var> {
        &self.vars
    }

    /// Checks that the names and shapes match `config` and `head`; the error lists every difference.
    pub fn check(&self, config: &ModelConfig, head: Head, origin: &str) -> Result<()> {
        let expected: BTreeMap<String, Vec<usize>> = config.tensor_shapes(head).into_iter().collect();
        let mut problems = Vec::new();
        for (name, shape) in &expected {
            match self.matrix(name).ok().map(|matrix| matrix.dims()) {
                None => problems.push(format!("tensor \"{name}\" {shape:?} is missing")),
                Some(found) if found != *shape => {
                    problems.push(format!("tensor \"{name}\" has shape {found:?}; config.json says {shape:?}"));
                }
                Some(_) => {}
            }
        }
        let names = self.tensors.keys().chain(self.quantized.keys()).chain(self.mapped.keys());
        let extra = names.filter(|name| !expected.contains_key(*name));
        problems.extend(extra.map(|name| format!("tensor \"{name}\" is not part of this model")));
        if problems.is_empty() { Ok(()) } else { Err(Error::Tensors { origin: origin.to_owned(), problems }) }
    }
}

/// A frozen snapshot: variables are copied, other tensors are shared.
pub(crate) fn frozen(tensors: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    let frozen = |tensor: &Tensor| if tensor.is_variable() { tensor.copy() } else { Ok(tensor.clone()) };
    tensors.iter().map(|(name, tensor)| Ok((name.clone(), frozen(tensor)?.detach()))).collect()
}

/// The same tensors, detached from the autograd graph.
pub(crate) fn detached(tensors: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    tensors.iter().map(|(name, tensor)| (name.clone(), tensor.detach())).collect()
}

fn init_tensor(config: &ModelConfig, name: &str, shape: &[usize], seed: u64) -> Result<Tensor> {
    let device = Device::Cpu;
    if name.ends_with("norm.weight") && config.norm != NormKind::RmsPlusOne {
        return Ok(Tensor::ones(shape, DType::F32, &device)?);
    }
    if name.ends_with("norm.weight") {
        return Ok(Tensor::zeros(shape, DType::F32, &device)?);
    }
    if name.ends_with(".bias") {
        return Ok(Tensor::zeros(shape, DType::F32, &device)?);
    }
    let std = if name == "score.weight" {
        1. / ((config.hidden_size + 1) as f64).sqrt()
    } else if name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight") {
        config.initializer_range / (2. * config.num_hidden_layers as f64).sqrt()
    } else {
        config.initializer_range
    };
    let mut rng = stream(seed, name);
    let mut normal = || {
        let x: f64 = StandardNormal.sample(&mut rng as &mut dyn Rng);
        (x * std) as f32
    };
    let data: Vec<f32> = (0..shape.iter().product::<usize>()).map(|_| normal()).collect();
    Ok(Tensor::from_vec(data, shape, &device)?)
}

/// The random stream of a tensor. It is selected by the FNV-1a hash of the name, so it does not depend on other tensors.
pub(crate) fn stream(seed: u64, name: &str) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(
        name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)),
    );
    rng
}
