//! The named tensors of a model, frozen or trainable.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use llm_kernels::{BlockFormat, Precision, QuantizedWeight, linear_add, linear_as, linear_in, linear_quantized};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::{Error, Head, ModelConfig, NormKind, Result};

/// Tensors by the decoder's name ([`ModelConfig::tensor_shapes`]). Trainable ones are variables that gradients flow to; frozen ones cost nothing.
#[derive(Debug, Clone, Default)]
pub struct Params {
    tensors: BTreeMap<String, Tensor>,
    vars: BTreeMap<String, Var>,
    quantized: BTreeMap<String, QuantizedWeight>,
    /// What the matrices are rounded to as they are multiplied.
    precision: Precision,
}

/// How the matrices of a frozen model are held; norms and biases are f32 always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightFormat {
    /// 4 bytes for each number.
    F32,
    /// 2 bytes.
    Bf16,
    /// ggml's blocks. Rows that a block does not divide fall back to `Q8_0`, and to f32 if 32 does not divide them.
    Blocks(BlockFormat),
}

impl WeightFormat {
    /// Bytes of the tensor `name` of `shape` in a model that is held in this format ([`crate::Model::frozen_as`]).
    pub(crate) fn bytes_of(self, name: &str, shape: &[usize]) -> u64 {
        let numbers = shape.iter().product::<usize>() as u64;
        let row = shape.last().copied().unwrap_or(0);
        let matrix = shape.len() == 2 && !is_router(name);
        match self {
            Self::Bf16 if matrix => numbers * 2,
            Self::Blocks(format) if matrix => match blocks_for(format, row) {
                Some(format) => numbers / format.elements() as u64 * format.bytes() as u64,
                None => numbers * 4,
            },
            _ => numbers * 4,
        }
    }
}

/// The format itself if its blocks divide rows of `row` numbers, or the one to fall back to.
fn blocks_for(format: BlockFormat, row: usize) -> Option<BlockFormat> {
    [format, BlockFormat::Q8_0].into_iter().find(|format| row.is_multiple_of(format.elements()))
}

/// A matrix of a model: a tensor, or blocks.
#[derive(Debug, Clone)]
pub(crate) enum Matrix {
    Dense(Tensor, Precision),
    Blocks(QuantizedWeight),
}

impl Matrix {
    /// `x · wᵀ`.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Dense(w, precision) => linear_in(x, w, *precision)?,
            Self::Blocks(w) => linear_quantized(x, w)?,
        })
    }

    /// `x · wᵀ` in heads: `(b, t, in)` to `(b, t, h, d)`.
    pub fn apply_to_heads(&self, x: &Tensor, h: usize, d: usize) -> Result<Tensor> {
        let (b, t, _) = x.dims3()?;
        Ok(match self {
            Self::Dense(w, precision) => linear_as(x, w, &[b, t, h, d], *precision)?,
            Self::Blocks(_) => self.apply(x)?.reshape((b, t, h, d))?,
        })
    }

    /// `residual + x · wᵀ`; `x` may be in heads.
    pub fn apply_and_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Dense(w, precision) => linear_add(x, w, residual, *precision)?,
            Self::Blocks(w) => {
                let rows = x.reshape((residual.elem_count() / w.shape().0, w.shape().1))?;
                (residual + linear_quantized(&rows, w)?.reshape(residual.shape())?)?
            }
        })
    }

    /// Rows `ids` `(n,)` in f32 or f64: `(n, in)`.
    pub fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(match self {
            // Weights may be in bf16, what flows between them is not.
            Self::Dense(w, _) if w.dtype() == DType::BF16 => w.index_select(ids, 0)?.to_dtype(DType::F32)?,
            Self::Dense(w, _) => w.index_select(ids, 0)?,
            Self::Blocks(w) => w.rows(&ids.to_vec1::<u32>()?)?,
        })
    }

    /// What it is rounded to as it is multiplied.
    pub fn precision(&self) -> Precision {
        match self {
            Self::Dense(_, precision) => *precision,
            Self::Blocks(_) => Precision::F32,
        }
    }

    /// The whole matrix, in f32 or f64.
    pub fn dense(&self) -> Result<Tensor> {
        Ok(match self {
            Self::Dense(w, _) if w.dtype() == DType::BF16 => w.to_dtype(DType::F32)?,
            Self::Dense(w, _) => w.clone(),
            Self::Blocks(w) => w.dequantize()?,
        })
    }
}

/// A router is small, and one that rounds sends tokens elsewhere.
fn is_router(name: &str) -> bool {
    name.ends_with("mlp.gate.weight")
}

impl Params {
    /// Frozen parameters.
    pub fn new(tensors: BTreeMap<String, Tensor>) -> Self {
        Self { tensors, ..Self::default() }
    }

    /// Fresh parameters for `config` and `head`: norms that scale by one, no biases, matrices normal with `initializer_range` (those that
    /// write into the residual stream smaller by `sqrt(2 · layers)`, as in GPT-2), the score head normal with
    /// `1 / sqrt(hidden_size + 1)` (Stiennon et al. 2020), its bias zero. Each tensor has its own stream of `seed`.
    pub fn init(config: &ModelConfig, head: Head, seed: u64) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, shape) in config.tensor_shapes(head) {
            let tensor = init_tensor(config, &name, &shape, seed)?;
            tensors.insert(name, tensor);
        }
        Ok(Self::new(tensors))
    }

    /// The same numbers as variables of their own: training them leaves the originals as they are.
    pub fn trainable(&self) -> Result<Self> {
        let mut copy = Self { precision: self.precision, ..Self::default() };
        for (name, tensor) in &self.tensors {
            let var = Var::from_tensor(&tensor.detach().copy()?)?;
            copy.tensors.insert(name.clone(), var.as_tensor().clone());
            copy.vars.insert(name.clone(), var);
        }
        Ok(copy)
    }

    /// The same numbers, at this moment, that no training changes.
    pub fn frozen(&self) -> Result<Self> {
        let copy = |(name, tensor): (&String, &Tensor)| Ok((name.clone(), tensor.detach().copy()?));
        let tensors = self.tensors.iter().map(copy).collect::<Result<_>>()?;
        Ok(Self { tensors, vars: BTreeMap::new(), quantized: self.quantized.clone(), precision: self.precision })
    }

    /// The same numbers, frozen, with matrices rounded to `format`.
    pub(crate) fn with_matrices_in(&self, format: WeightFormat) -> Result<Self> {
        let mut rounded = Self { quantized: self.quantized.clone(), precision: self.precision, ..Self::default() };
        for (name, tensor) in &self.tensors {
            let tensor = tensor.detach();
            let row = tensor.dims().last().copied().unwrap_or(0);
            let matrix = tensor.rank() == 2 && !is_router(name);
            let blocks = match format {
                WeightFormat::Blocks(format) if matrix => blocks_for(format, row),
                _ => None,
            };
            if let Some(format) = blocks {
                rounded.quantized.insert(name.clone(), QuantizedWeight::quantize(&tensor, format)?);
            } else {
                let half = format == WeightFormat::Bf16 && matrix;
                let tensor = if half { tensor.to_dtype(DType::BF16)? } else { tensor.copy()? };
                rounded.tensors.insert(name.clone(), tensor);
            }
        }
        Ok(rounded)
    }

    /// Keeps what `head` needs of these parameters and makes what it lacks (a score head) from `seed`.
    pub fn for_head(&self, config: &ModelConfig, head: Head, seed: u64) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, shape) in config.tensor_shapes(head) {
            let tensor = match self.tensors.get(&name) {
                Some(tensor) => tensor.detach(),
                None if name.starts_with("score.") => init_tensor(config, &name, &shape, seed)?,
                None => {
                    let problems = vec![format!("tensor \"{name}\" is missing and cannot be made up")];
                    return Err(Error::Tensors { origin: "parameters".to_owned(), problems });
                }
            };
            tensors.insert(name, tensor);
        }
        Ok(Self::new(tensors))
    }

    /// The same tensors and variables, whose matrices are rounded to `precision` as they are multiplied.
    pub(crate) fn in_precision(&self, precision: Precision) -> Self {
        Self { precision, ..self.clone() }
    }

    /// What the matrices are rounded to as they are multiplied.
    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        self.tensors.get(name).cloned().ok_or_else(|| Error::Tensors {
            origin: "parameters".to_owned(),
            problems: vec![format!("tensor \"{name}\" is missing")],
        })
    }

    /// The matrix of that name.
    pub(crate) fn matrix(&self, name: &str) -> Result<Matrix> {
        match self.quantized.get(name) {
            Some(blocks) => Ok(Matrix::Blocks(blocks.clone())),
            None => {
                let precision = if is_router(name) { Precision::F32 } else { self.precision };
                Ok(Matrix::Dense(self.get(name)?, precision))
            }
        }
    }

    /// The matrices that are held in blocks, by name; they are not among [`Self::tensors`].
    pub fn quantized(&self) -> &BTreeMap<String, QuantizedWeight> {
        &self.quantized
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// The trainable ones, by name; empty for a frozen model.
    pub fn vars(&self) -> &BTreeMap<String, Var> {
        &self.vars
    }

    /// Checks that these are exactly the tensors that `config` and `head` ask for; the error lists every difference.
    pub fn check(&self, config: &ModelConfig, head: Head, origin: &str) -> Result<()> {
        let expected: BTreeMap<String, Vec<usize>> = config.tensor_shapes(head).into_iter().collect();
        let mut problems = Vec::new();
        for (name, shape) in &expected {
            let blocks = self.quantized.get(name).map(|w| vec![w.shape().0, w.shape().1]);
            match blocks.or_else(|| self.tensors.get(name).map(|tensor| tensor.dims().to_vec())) {
                None => problems.push(format!("tensor \"{name}\" {shape:?} is missing")),
                Some(found) if found != *shape => {
                    problems.push(format!("tensor \"{name}\" has shape {found:?}, config.json says {shape:?}"));
                }
                Some(_) => {}
            }
        }
        let extra = self.tensors.keys().chain(self.quantized.keys()).filter(|name| !expected.contains_key(*name));
        problems.extend(extra.map(|name| format!("tensor \"{name}\" belongs to no part of this model")));
        if problems.is_empty() { Ok(()) } else { Err(Error::Tensors { origin: origin.to_owned(), problems }) }
    }
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
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(name_stream(name));
    let mut normal = || {
        let x: f64 = StandardNormal.sample(&mut rng as &mut dyn Rng);
        (x * std) as f32
    };
    let data: Vec<f32> = (0..shape.iter().product::<usize>()).map(|_| normal()).collect();
    Ok(Tensor::from_vec(data, shape, &device)?)
}

/// FNV-1a of the name: a stream of its own for each tensor, whatever else the model holds.
fn name_stream(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
