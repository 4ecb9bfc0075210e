//! Low-rank adapters: a frozen matrix `W` becomes `W + s·BA` with small trainable matrices `A` and `B` (LoRA, Hu et al.
//! 2021, arXiv 2106.09685). rsLoRA scales with `s = alpha / sqrt(r)` (Kalajdzievski 2023, arXiv 2312.03732). DoRA also
//! trains the magnitude of each row of the sum (Liu et al. 2024, arXiv 2402.09353). With a quantised `W` this is QLoRA
//! (Dettmers et al. 2023, arXiv 2305.14314).

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use llm_kernels::LoraWeights;
use rand_distr::{Distribution, StandardUniform};
use serde::{Deserialize, Serialize};

use crate::formats::families;
use crate::params::stream;
use crate::token_rows::{TokenIndices, TokenTarget};
use crate::weight::Weight;
use crate::{Error, Head, ModelConfig, Params, Result, TensorSpec};

/// The configuration of an adapter, with the names and defaults of PEFT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// The rank, at least 1: rows of `A`, columns of `B`.
    pub r: usize,
    /// The scale: `s = lora_alpha / r`.
    pub lora_alpha: f64,
    /// The linear layers to adapt, by the name in transformers or its last parts (`q_proj`, `layers.1.mlp.up_proj`).
    pub target_modules: Vec<String>,
    /// rsLoRA: `s = lora_alpha / sqrt(r)`.
    pub use_rslora: bool,
    /// DoRA: each row of `W + s·BA` is rescaled to a trained magnitude.
    pub use_dora: bool,
    /// Tokens with trainable rows in the embedding and the output layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trainable_token_indices: Option<TokenIndices>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        let target_modules = ["q_proj", "v_proj"].map(str::to_owned).to_vec();
        Self { r: 8, lora_alpha: 8., target_modules, use_rslora: false, use_dora: false, trainable_token_indices: None }
    }
}

/// A linear layer to adapt.
pub(crate) struct Target {
    /// The name in the decoder.
    pub name: String,
    /// The name in transformers.
    pub module: String,
    /// Output features (rows).
    pub out: usize,
    /// Input features (columns).
    pub width: usize,
}

impl Target {
    /// The tensors of its adapter: name suffix (here and in PEFT) and shape.
    pub fn shapes(&self, config: &LoraConfig) -> Vec<(&'static str, Vec<usize>)> {
        let mut shapes = vec![(A, vec![config.r, self.width]), (B, vec![self.out, config.r])];
        shapes.extend(config.use_dora.then(|| (MAGNITUDE, vec![self.out])));
        shapes
    }
}

const A: &str = "lora_A.weight";
const B: &str = "lora_B.weight";
const MAGNITUDE: &str = "lora_magnitude_vector";

impl LoraConfig {
    fn scale(&self) -> f64 {
        self.lora_alpha / if self.use_rslora { (self.r as f64).sqrt() } else { self.r as f64 }
    }

    /// The trainable token rows of a model that this configuration names; errors name `origin`.
    pub(crate) fn token_targets(&self, model: &ModelConfig, origin: &str) -> Result<Vec<TokenTarget>> {
        self.trainable_token_indices.as_ref().map_or(Ok(Vec::new()), |indices| indices.targets(model, origin))
    }

    /// The linear layers of a model that this configuration names; errors name `origin`.
    pub(crate) fn targets(&self, model: &ModelConfig, head: Head, origin: &str) -> Result<Vec<Target>> {
        let wrong = |message: String| Err(Error::config(origin, message));
        if head != Head::LanguageModel {
            return wrong("adapters need a language model; this model has a score head".to_owned());
        }
        if self.r == 0 {
            return wrong("\"r\" is 0; it must be at least 1".to_owned());
        }
        if !self.lora_alpha.is_finite() {
            return wrong(format!("\"lora_alpha\" is {}; it must be a finite number", self.lora_alpha));
        }
        let family = model.model_type.name();
        let (mut adaptable, mut others) = (Vec::new(), Vec::new());
        for TensorSpec { name, shape, role, .. } in model.tensor_specs(head) {
            let (Some(name), &[out, width]) = (name.strip_suffix(".weight"), shape.as_slice()) else { continue };
            let (module, unfused) = families::module_of(model, head, name);
            let target = Target { name: name.to_owned(), module, out, width };
            if unfused && role.is_adaptable() { adaptable.push(target) } else { others.push(target) }
        }
        for wanted in &self.target_modules {
            let matches = |target: &Target| is_named(&target.module, wanted);
            if others.iter().any(matches) {
                return wrong(format!(
                    "\"target_modules\" names \"{wanted}\"; adapters of a \"{family}\" do not support embeddings, heads, \
                     routers, experts, or matrices that its files store transposed or fused; valid targets: {}",
                    last_parts(&adaptable)
                ));
            }
            if !adaptable.iter().any(matches) {
                let known = last_parts(&adaptable);
                return wrong(format!(
                    "\"target_modules\" names \"{wanted}\", which is not a module of \"{family}\"; valid targets: {known}"
                ));
            }
        }
        adaptable.retain(|target| self.target_modules.iter().any(|wanted| is_named(&target.module, wanted)));
        if adaptable.is_empty() {
            return wrong("\"target_modules\" is empty; name at least one linear layer".to_owned());
        }
        Ok(adaptable)
    }
}

fn is_named(module: &str, wanted: &str) -> bool {
    module.strip_suffix(wanted).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// The distinct last parts of the module names.
fn last_parts(targets: &[Target]) -> String {
    let mut names: Vec<&str> = targets.iter().filter_map(|target| target.module.rsplit('.').next()).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// An adapter: configuration and weights.
#[derive(Debug, Clone)]
pub(crate) struct Adapter {
    pub config: LoraConfig,
    /// Trainable or dense weights by name: the decoder's name of the matrix and the suffix of PEFT, such as
    /// `model.layers.0.self_attn.q_proj.lora_A.weight` or `model.embed_tokens.token_adapter.trainable_tokens_delta`.
    pub weights: BTreeMap<String, Weight>,
}

impl Adapter {
    /// A new adapter that does not change the model yet: `A` is uniform in ±1/√in (Kaiming, as in PEFT), `B` is zero, the
    /// magnitudes are the row norms of `W`, token rows are copies.
    pub fn init(
        config: &LoraConfig,
        (targets, tokens): (&[Target], &[TokenTarget]),
        params: &Params,
        seed: u64,
    ) -> Result<Self> {
        let mut weights = BTreeMap::new();
        let mut token_dtype = DType::F32;
        for target in targets {
            let weight = params.get(&format!("{}.weight", target.name))?;
            let dtype = match weight.tensor() {
                Some(w) if w.dtype() == DType::F64 => DType::F64,
                _ => DType::F32,
            };
            token_dtype = dtype;
            for (part, shape) in target.shapes(config) {
                let name = format!("{}.{part}", target.name);
                let tensor = match part {
                    A => uniform(&name, &shape, seed)?.to_dtype(dtype)?.to_device(&weight.device())?,
                    B => Tensor::zeros(shape, dtype, &weight.device())?,
                    _ => row_norms(&weight.to_dense()?.detach())?,
                };
                weights.insert(name, Weight::Dense(tensor));
            }
        }
        weights.extend(Self::init_rows(tokens, params, token_dtype)?);
        Ok(Self { config: config.clone(), weights })
    }

    /// Applies `f` to each weight.
    pub fn map(&self, f: impl Fn(&Weight) -> Result<Weight>) -> Result<Self> {
        let weights = self.weights.iter().map(|(name, weight)| Ok((name.clone(), f(weight)?)));
        Ok(Self { config: self.config.clone(), weights: weights.collect::<Result<_>>()? })
    }

    /// The tensor `name`, if the adapter has it.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.weights.get(name)?.tensor()
    }
}

fn uniform(name: &str, shape: &[usize], seed: u64) -> Result<Tensor> {
    let bound = 1. / (shape[1] as f64).sqrt();
    let mut rng = stream(seed, name);
    let mut number = || {
        let unit: f64 = StandardUniform.sample(&mut rng);
        ((2. * unit - 1.) * bound) as f32
    };
    let data: Vec<f32> = (0..shape.iter().product::<usize>()).map(|_| number()).collect();
    Ok(Tensor::from_vec(data, shape, &Device::Cpu)?)
}

/// L2 norm of each row: `(out, in)` to `(out,)`.
fn row_norms(weight: &Tensor) -> Result<Tensor> {
    Ok(weight.sqr()?.sum(1)?.sqrt()?)
}

/// The adapter of one linear layer.
#[derive(Debug, Clone)]
pub(crate) struct Lora {
    a: Tensor, // (r, in)
    b: Tensor, // (out, r)
    scale: f64,
    magnitude: Option<Tensor>, // (out,)
    /// The DoRA scale of a frozen adapter, cached because it needs a pass over the whole weight.
    dora_scale: Option<Tensor>, // (out,)
}

impl Lora {
    /// The adapter of the linear layer `name`, if `adapter` has one.
    pub fn new(adapter: &Adapter, name: &str, weight: &Weight) -> Result<Option<Self>> {
        let part = |part: &str| adapter.tensor(&format!("{name}.{part}")).cloned();
        let (Some(a), Some(b)) = (part(A), part(B)) else { return Ok(None) };
        let mut lora = Self { a, b, scale: adapter.config.scale(), magnitude: part(MAGNITUDE), dora_scale: None };
        if !lora.b.is_variable() {
            lora.dora_scale = lora.dora_scale(weight)?;
        }
        Ok(Some(lora))
    }

    /// The weights that are added to those of the layer.
    pub fn weights(&self, weight: &Weight) -> Result<LoraWeights<'_>> {
        let dora_scale = if self.dora_scale.is_some() { self.dora_scale.clone() } else { self.dora_scale(weight)? };
        Ok(LoraWeights { a: &self.a, b: &self.b, scale: self.scale, dora_scale })
    }

    /// The merged matrix `(out, in)`.
    pub fn merged(&self, weight: &Weight) -> Result<Tensor> {
        let sum = self.sum(weight)?;
        Ok(match self.dora_scale(weight)? {
            Some(scale) => sum.broadcast_mul(&scale.detach().unsqueeze(1)?)?,
            None => sum,
        })
    }

    /// `W + s·BA`, without gradient.
    fn sum(&self, weight: &Weight) -> Result<Tensor> {
        let delta = (self.b.detach().matmul(&self.a.detach())? * self.scale)?;
        Ok((weight.to_dense()?.detach() + delta)?)
    }

    /// `magnitude / ‖W + s·BA‖` per row; the norm is treated as a constant (DoRA, section 4.3). None without DoRA.
    fn dora_scale(&self, weight: &Weight) -> Result<Option<Tensor>> {
        let Some(magnitude) = &self.magnitude else { return Ok(None) };
        Ok(Some((magnitude / row_norms(&self.sum(weight)?)?)?))
    }

    /// The tensors that may be trainable.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.a, &self.b].into_iter().chain(&self.magnitude)
    }
}
