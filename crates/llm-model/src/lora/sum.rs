//! The sum of adapters as one adapter: the factors side by side, so that `s·BA` is the sum of theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::Tensor;

use super::adapter::Adapter;
use super::config::LoraConfig;
use super::layout::{Layout, Target};
use super::tokens::{TokenIndices, TokenTarget};
use crate::weight::Weight;
use crate::{Head, ModelConfig, Result};

impl Adapter {
    /// The sum of adapters, the lowest first. Its rank is the sum of their largest ranks, and its scale is 1; matrices of a lower
    /// rank are filled with zeros. Of trainable rows and whole modules the uppermost counts.
    pub fn sum(adapters: &[Self], model: &ModelConfig, head: Head) -> Result<Self> {
        if let [adapter] = adapters {
            return Ok(adapter.clone());
        }
        let ranks: Vec<usize> =
            adapters.iter().map(|a| a.layout.targets.iter().map(|t| t.r).max().unwrap_or(0)).collect();
        let union = |of: fn(&LoraConfig) -> &[String]| -> Vec<String> {
            let all: BTreeSet<&String> = adapters.iter().flat_map(|adapter| of(&adapter.config)).collect();
            all.into_iter().cloned().collect()
        };
        let r = ranks.iter().sum::<usize>().max(1);
        let config = LoraConfig {
            r,
            lora_alpha: r as f64,
            target_modules: union(|config| &config.target_modules),
            target_parameters: union(|config| &config.target_parameters),
            modules_to_save: union(|config| &config.modules_to_save),
            ensure_weight_tying: adapters.iter().any(|adapter| adapter.config.ensure_weight_tying),
            trainable_token_indices: token_indices(adapters),
            ..LoraConfig::default()
        };
        let layout = Layout::new(&config, model, head, "the sum of the adapters")?;
        let mut weights = BTreeMap::new();
        for target in &layout.targets {
            let [a, b] = target.factors();
            let [sum_a, sum_b] = sum_of_factors(target, adapters, &ranks)?;
            weights.insert(target.key(a), Weight::Dense(sum_a));
            weights.insert(target.key(b), Weight::Dense(sum_b));
        }
        for target in &layout.tokens {
            weights.insert(TokenTarget::tensor(&target.module), Weight::Dense(token_rows(target, adapters)?));
        }
        for saved in layout.saved.iter().filter(|saved| saved.same_as.is_none()) {
            if let Some(weight) = adapters.iter().rev().find_map(|adapter| adapter.saved(&saved.name)) {
                weights.insert(saved.key.clone(), weight.frozen()?);
            }
        }
        Ok(Self { config, layout: Arc::new(layout), weights })
    }
}

/// `A` and `B` of a target in the sum.
fn sum_of_factors(target: &Target, adapters: &[Adapter], ranks: &[usize]) -> Result<[Tensor; 2]> {
    let (e, name) = (target.experts(), &target.parts[0].name);
    let (mut all_a, mut all_b) = (Vec::new(), Vec::new());
    for (adapter, &rank) in adapters.iter().zip(ranks) {
        let Some((own, _)) = adapter.layout.target(name) else { continue };
        let [Some(a), Some(b)] = own.factors().map(|part| adapter.tensor(&own.key(part))) else { continue };
        // By expert, with the rank in the middle of `A` and at the end of `B`.
        let a = a.detach().reshape((e, own.r, ()))?.pad_with_zeros(1, 0, rank - own.r)?;
        let b = (b.detach() * own.scale)?.reshape(((), own.r, e))?.pad_with_zeros(1, 0, rank - own.r)?;
        all_a.push(a);
        all_b.push(b);
    }
    let used: usize = all_a.iter().map(|a| a.dims()[1]).sum();
    let missing = ranks.iter().sum::<usize>() - used;
    let a = Tensor::cat(&all_a, 1)?.pad_with_zeros(1, 0, missing)?;
    let b = Tensor::cat(&all_b, 1)?.pad_with_zeros(1, 0, missing)?;
    let (input, output) = (a.dim(2)?, b.dim(0)?);
    Ok([a.reshape(((), input))?, b.reshape((output, ()))?])
}

/// The ids of all adapters, for each matrix.
fn token_indices(adapters: &[Adapter]) -> Option<TokenIndices> {
    let mut modules: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for target in adapters.iter().flat_map(|adapter| &adapter.layout.tokens) {
        let ids = modules.entry(target.module.clone()).or_default();
        let new: Vec<u32> = target.ids.iter().copied().filter(|id| !ids.contains(id)).collect();
        ids.extend(new);
    }
    let of_embedding =
        |adapter: &Adapter| matches!(adapter.config.trainable_token_indices, None | Some(TokenIndices::Embedding(_)));
    match adapters.iter().all(of_embedding) {
        true => modules.into_values().next().map(TokenIndices::Embedding),
        false => Some(TokenIndices::Modules(modules)),
    }
}

/// The rows of a target in the sum, `(ids, hidden)`.
fn token_rows(target: &TokenTarget, adapters: &[Adapter]) -> Result<Tensor> {
    let row = |id: u32| -> Option<Result<Tensor>> {
        adapters.iter().rev().find_map(|adapter| {
            let own = adapter.layout.tokens.iter().find(|own| own.name == target.name)?;
            let at = own.ids.iter().position(|&other| other == id)?;
            let rows = adapter.tensor(&TokenTarget::tensor(&own.module))?;
            Some(rows.detach().get(at).map_err(Into::into))
        })
    };
    let rows = target.ids.iter().filter_map(|&id| row(id)).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::stack(&rows, 0)?)
}
