//! Low-rank adapters: a frozen matrix `W` becomes `W + s·BA`, of which the small `A` and `B` are learnt (LoRA, Hu et al.
//! 2021, arXiv 2106.09685). rsLoRA has another `s` (Kalajdzievski 2023, arXiv 2312.03732); DoRA learns how long each row of
//! the sum is besides (Liu et al. 2024, arXiv 2402.09353). With a quantised `W` it is QLoRA (Dettmers et al. 2023, arXiv
//! 2305.14314).

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use llm_kernels::{linear_residual, linear_with_precision};
use rand_distr::{Distribution, StandardUniform};
use serde::{Deserialize, Serialize};

use crate::matrix::Matrix;
use crate::params::{detached, frozen, stream};
use crate::token_rows::{TokenIndices, TokenTarget};
use crate::{Error, Head, ModelConfig, Params, Result, families};

/// The settings of an adapter, by PEFT's names and with its defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// The rank: rows of `A`, columns of `B`.
    pub r: usize,
    /// `s` is `lora_alpha / r`.
    pub lora_alpha: f64,
    /// The linear maps that are adapted, by transformers' name or its last parts (`q_proj`, `layers.1.mlp.up_proj`).
    pub target_modules: Vec<String>,
    /// rsLoRA: `s` is `lora_alpha / sqrt(r)`.
    pub use_rslora: bool,
    /// DoRA: each row of `W + s·BA` is scaled to a length that is learnt.
    pub use_dora: bool,
    /// The tokens whose rows of the embedding and the output layer are trained as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trainable_token_indices: Option<TokenIndices>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        let target_modules = ["q_proj", "v_proj"].map(str::to_owned).to_vec();
        Self { r: 8, lora_alpha: 8., target_modules, use_rslora: false, use_dora: false, trainable_token_indices: None }
    }
}

/// A linear map that is adapted.
pub(crate) struct Target {
    /// The decoder's name.
    pub name: String,
    /// transformers' name.
    pub module: String,
    /// Rows.
    pub out: usize,
    /// Columns.
    pub width: usize,
}

impl Target {
    /// The tensors of its adapter: their ending here and in PEFT, and their shape.
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

    /// The rows of the embedding and the output layer of a model that this names; `origin` is named in errors.
    pub(crate) fn token_targets(&self, model: &ModelConfig, origin: &str) -> Result<Vec<TokenTarget>> {
        self.trainable_token_indices.as_ref().map_or(Ok(Vec::new()), |indices| indices.targets(model, origin))
    }

    /// The linear maps of a model that this names; `origin` is named in errors.
    pub(crate) fn targets(&self, model: &ModelConfig, head: Head, origin: &str) -> Result<Vec<Target>> {
        let wrong = |message: String| Err(Error::config(origin, message));
        if head != Head::LanguageModel {
            return wrong("adapters are for language models; this model has another head".to_owned());
        }
        if self.r == 0 {
            return wrong("\"r\" is 0; give at least 1".to_owned());
        }
        if !self.lora_alpha.is_finite() {
            return wrong(format!("\"lora_alpha\" is {}; give a number", self.lora_alpha));
        }
        let family = model.model_type.name();
        let (mut adaptable, mut others) = (Vec::new(), Vec::new());
        for (name, shape) in model.tensor_shapes(head) {
            let (Some(name), &[out, width]) = (name.strip_suffix(".weight"), shape.as_slice()) else { continue };
            let (module, alone) = families::module_of(model, head, name);
            let target = Target { name: name.to_owned(), module, out, width };
            let inner = name.contains(".layers.") && !name.contains(".mlp.experts.") && !name.ends_with(".mlp.gate");
            if alone && inner { adaptable.push(target) } else { others.push(target) }
        }
        for wanted in &self.target_modules {
            let means = |target: &Target| is_named(&target.module, wanted);
            if others.iter().any(means) {
                return wrong(format!(
                    "\"target_modules\" names \"{wanted}\", which has no adapter in a \"{family}\" here: an embedding, a head, a \
                     router, an expert, or a matrix that the files hold transposed or joined with others; adapted are {}",
                    last_parts(&adaptable)
                ));
            }
            if !adaptable.iter().any(means) {
                let known = last_parts(&adaptable);
                return wrong(format!(
                    "\"target_modules\" names \"{wanted}\", which a \"{family}\" has not; adapted are {known}"
                ));
            }
        }
        adaptable.retain(|target| self.target_modules.iter().any(|wanted| is_named(&target.module, wanted)));
        if adaptable.is_empty() {
            return wrong("\"target_modules\" is empty; name the linear maps to adapt".to_owned());
        }
        Ok(adaptable)
    }
}

fn is_named(module: &str, wanted: &str) -> bool {
    module.strip_suffix(wanted).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// The last parts of the names, each once.
fn last_parts(targets: &[Target]) -> String {
    let mut names: Vec<&str> = targets.iter().filter_map(|target| target.module.rsplit('.').next()).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// The numbers of an adapter.
#[derive(Debug, Clone)]
pub(crate) struct Adapter {
    pub config: LoraConfig,
    /// By the decoder's name of the matrix and PEFT's of the part: `model.layers.0.self_attn.q_proj.lora_A.weight`,
    /// `model.embed_tokens.token_adapter.trainable_tokens_delta`.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Adapter {
    /// An adapter that changes nothing yet: `A` uniform in ±1/√in (Kaiming's, as in PEFT), `B` zero, magnitudes the lengths of
    /// the rows of `W`, tokens' rows as they are.
    pub fn fresh(
        config: &LoraConfig,
        (targets, tokens): (&[Target], &[TokenTarget]),
        params: &Params,
        seed: u64,
    ) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        let mut wide = DType::F32;
        for target in targets {
            let weight = params.matrix(&format!("{}.weight", target.name))?;
            let dtype = match &weight {
                Matrix::Dense(w, _) if w.dtype() == DType::F64 => DType::F64,
                _ => DType::F32,
            };
            wide = dtype;
            for (part, shape) in target.shapes(config) {
                let name = format!("{}.{part}", target.name);
                let tensor = match part {
                    A => uniform(&name, &shape, seed)?.to_dtype(dtype)?,
                    B => Tensor::zeros(shape, dtype, &Device::Cpu)?,
                    _ => row_lengths(&weight.dense()?.detach())?,
                };
                tensors.insert(name, tensor);
            }
        }
        tensors.extend(Self::fresh_rows(tokens, params, wide)?);
        Ok(Self { config: config.clone(), tensors })
    }

    /// The same numbers, at this moment, that no training changes.
    pub fn frozen(&self) -> Result<Self> {
        Ok(Self { config: self.config.clone(), tensors: frozen(&self.tensors)? })
    }

    /// The same tensors, for which no gradient is computed.
    pub fn detached(&self) -> Self {
        Self { config: self.config.clone(), tensors: detached(&self.tensors) }
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

/// `(out, in)` to `(out,)`.
fn row_lengths(weight: &Tensor) -> Result<Tensor> {
    Ok(weight.sqr()?.sum(1)?.sqrt()?)
}

/// What an adapter has for one linear map.
#[derive(Debug, Clone)]
pub(crate) struct Lora {
    a: Tensor, // (r, in)
    b: Tensor, // (out, r)
    scale: f64,
    magnitude: Option<Tensor>, // (out,)
    /// What DoRA multiplies the outputs by, where nothing trains: it costs a pass over the whole weight.
    stretch: Option<Tensor>, // (out,)
}

impl Lora {
    /// What `adapter` has for the map `name`, if anything.
    pub fn new(adapter: &Adapter, name: &str, weight: &Matrix) -> Result<Option<Self>> {
        let part = |part: &str| adapter.tensors.get(&format!("{name}.{part}")).cloned();
        let (Some(a), Some(b)) = (part(A), part(B)) else { return Ok(None) };
        let mut lora = Self { a, b, scale: adapter.config.scale(), magnitude: part(MAGNITUDE), stretch: None };
        if !lora.b.is_variable() {
            lora.stretch = lora.stretch(weight)?;
        }
        Ok(Some(lora))
    }

    /// What becomes of `y = x · wᵀ`: `y + s·(x · Aᵀ) · Bᵀ`, stretched if it is DoRA's. `x` is `(…, in)`, `y` is `(…, out)`.
    pub fn apply(&self, x: &Tensor, y: &Tensor, weight: &Matrix) -> Result<Tensor> {
        let precision = weight.precision();
        let low = (linear_with_precision(x, &self.a, precision)? * self.scale)?; // (…, r)
        let y = linear_residual(&low, &self.b, y, precision)?;
        let stretch = if self.stretch.is_some() { self.stretch.clone() } else { self.stretch(weight)? };
        Ok(match stretch {
            Some(stretch) => y.broadcast_mul(&stretch)?,
            None => y,
        })
    }

    /// The one matrix that does the same, `(out, in)`.
    pub fn merged(&self, weight: &Matrix) -> Result<Tensor> {
        let sum = self.sum(weight)?;
        Ok(match self.stretch(weight)? {
            Some(stretch) => sum.broadcast_mul(&stretch.detach().unsqueeze(1)?)?,
            None => sum,
        })
    }

    /// `W + s·BA`, for which no gradient is computed.
    fn sum(&self, weight: &Matrix) -> Result<Tensor> {
        let change = (self.b.detach().matmul(&self.a.detach())? * self.scale)?;
        Ok((weight.dense()?.detach() + change)?)
    }

    /// The magnitudes by the lengths of the rows of `W + s·BA`, which count as constants (section 4.3 of DoRA's paper).
    fn stretch(&self, weight: &Matrix) -> Result<Option<Tensor>> {
        let Some(magnitude) = &self.magnitude else { return Ok(None) };
        Ok(Some((magnitude / row_lengths(&self.sum(weight)?)?)?))
    }

    /// The tensors that may train.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.a, &self.b].into_iter().chain(&self.magnitude)
    }
}
