//! The initial weights of an adapter.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use rand_distr::{Distribution, StandardUniform};

use super::adapter::Adapter;
use super::config::{A, B, LoraConfig, Target};
use super::layer::row_norms;
use super::token_rows::rows_of;
use super::tokens::TokenTarget;
use crate::params::stream;
use crate::weight::Weight;
use crate::{Params, Result};

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

    /// The initial trainable rows by name: copies of the base rows, so a new adapter does not change the model.
    fn init_rows(targets: &[TokenTarget], params: &Params, dtype: DType) -> Result<BTreeMap<String, Weight>> {
        let init = |target: &TokenTarget| {
            let matrix = params.get(&format!("{}.weight", target.name))?;
            Ok((TokenTarget::tensor(&target.name), rows_of(matrix, &target.ids)?.to_dtype(dtype)?.into()))
        };
        targets.iter().map(init).collect()
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
