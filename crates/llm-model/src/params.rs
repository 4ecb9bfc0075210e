//! The named tensors of a model, frozen or trainable.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::{Error, Head, ModelConfig, Result};

/// Tensors by their Hugging Face name. Trainable ones are variables that gradients flow to; frozen ones cost nothing.
#[derive(Debug, Clone, Default)]
pub struct Params {
    tensors: BTreeMap<String, Tensor>,
    vars: BTreeMap<String, Var>,
}

impl Params {
    /// Frozen parameters.
    pub fn new(tensors: BTreeMap<String, Tensor>) -> Self {
        Self { tensors, vars: BTreeMap::new() }
    }

    /// Fresh parameters for `config` and `head`: norms at one, matrices normal with `initializer_range` (those that
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
        let mut copy = Self::default();
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
        Ok(Self::new(self.tensors.iter().map(copy).collect::<Result<_>>()?))
    }

    /// The same numbers, frozen, with matrices rounded to `dtype`.
    pub(crate) fn with_matrices_in(&self, dtype: DType) -> Result<Self> {
        let round = |(name, tensor): (&String, &Tensor)| {
            let tensor = if tensor.rank() > 1 { tensor.to_dtype(dtype)? } else { tensor.clone() };
            Ok((name.clone(), tensor))
        };
        Ok(Self::new(self.tensors.iter().map(round).collect::<Result<_>>()?))
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

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        self.tensors.get(name).cloned().ok_or_else(|| Error::Tensors {
            origin: "parameters".to_owned(),
            problems: vec![format!("tensor \"{name}\" is missing")],
        })
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
            match self.tensors.get(name) {
                None => problems.push(format!("tensor \"{name}\" {shape:?} is missing")),
                Some(tensor) if tensor.dims() != shape => problems
                    .push(format!("tensor \"{name}\" has shape {:?}, config.json says {shape:?}", tensor.dims())),
                Some(_) => {}
            }
        }
        let extra = self.tensors.keys().filter(|name| !expected.contains_key(*name));
        problems.extend(extra.map(|name| format!("tensor \"{name}\" belongs to no part of this model")));
        if problems.is_empty() { Ok(()) } else { Err(Error::Tensors { origin: origin.to_owned(), problems }) }
    }
}

fn init_tensor(config: &ModelConfig, name: &str, shape: &[usize], seed: u64) -> Result<Tensor> {
    let device = Device::Cpu;
    if name.ends_with("norm.weight") {
        return Ok(Tensor::ones(shape, DType::F32, &device)?);
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
