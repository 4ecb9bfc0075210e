//! The initial weights of an adapter.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use rand_distr::{Distribution, StandardNormal, StandardUniform};

use super::adapter::Adapter;
use super::config::LoraConfig;
use super::layer::row_norms;
use super::layout::{A, EMBEDDING_B, Layout, MAGNITUDE, Target};
use super::token_rows::effective_rows;
use super::tokens::TokenTarget;
use crate::formats::families::Rows;
use crate::params::stream;
use crate::weight::Weight;
use crate::{ModelConfig, Params, Result};

impl Adapter {
    /// A new adapter over the weights and adapters of `params` that does not change the model yet: `A` is uniform in ±1/√in
    /// (Kaiming, as in PEFT), `B` is zero, the magnitudes are the row norms of `W`, token rows and whole modules are copies. Of
    /// an embedding `A` is zero and `B` is normal.
    pub fn init(
        config: &LoraConfig,
        layout: Layout,
        (model, params): (&ModelConfig, &Params),
        seed: u64,
    ) -> Result<Self> {
        let mut weights = BTreeMap::new();
        let mut dtype = DType::F32;
        for target in &layout.targets {
            let weight = params.get(&format!("{}.weight", target.parts[0].name));
            let weight = weight.or_else(|_| params.get("model.embed_tokens.weight"))?; // a tied output layer
            dtype = match weight.tensor() {
                Some(w) if w.dtype() == DType::F64 => DType::F64,
                _ => DType::F32,
            };
            for (part, shape) in target.tensors(config.use_dora) {
                let name = target.key(part);
                let device = weight.device();
                let tensor = match part {
                    A => uniform(&name, &shape, seed)?.to_dtype(dtype)?.to_device(&device)?,
                    EMBEDDING_B => normal(&name, &shape, seed)?.to_dtype(dtype)?.to_device(&device)?,
                    MAGNITUDE => magnitudes(target, params)?,
                    _ => Tensor::zeros(shape, dtype, &device)?,
                };
                weights.insert(name, Weight::Dense(tensor));
            }
        }
        for target in &layout.tokens {
            let rows = effective_rows((model, params), &target.name, &target.ids)?.to_dtype(dtype)?;
            weights.insert(TokenTarget::tensor(&target.module), rows.into());
        }
        for saved in layout.saved.iter().filter(|saved| saved.same_as.is_none()) {
            let weight = params.get(&saved.name).or_else(|_| params.get("model.embed_tokens.weight"))?;
            weights.insert(saved.key.clone(), Weight::Dense(weight.to_dense()?.detach().copy()?));
        }
        Ok(Self { config: config.clone(), layout: Arc::new(layout), weights })
    }
}

/// The row norms of the matrix of a module `(out,)`.
fn magnitudes(target: &Target, params: &Params) -> Result<Tensor> {
    let mut parts: Vec<(Option<Rows>, Tensor)> = Vec::new();
    for part in &target.parts {
        let weight = params.get(&format!("{}.weight", part.name));
        let weight = weight.or_else(|_| params.get("model.embed_tokens.weight"))?;
        parts.push((part.rows, row_norms(&weight.to_dense()?.detach())?));
    }
    let [(Some(Rows { groups, .. }), _), ..] = parts.as_slice() else { return Ok(parts.swap_remove(0).1) };
    let groups = *groups;
    parts.sort_by_key(|(rows, _)| rows.map_or(0, |rows| rows.start));
    let grouped =
        parts.iter().map(|(_, norms)| norms.reshape((groups, ()))).collect::<candle_core::Result<Vec<_>>>()?;
    Ok(Tensor::cat(&grouped, 1)?.flatten_all()?)
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

fn normal(name: &str, shape: &[usize], seed: u64) -> Result<Tensor> {
    let mut rng = stream(seed, name);
    let data: Vec<f32> = (0..shape.iter().product::<usize>()).map(|_| StandardNormal.sample(&mut rng)).collect();
    Ok(Tensor::from_vec(data, shape, &Device::Cpu)?)
}
