//! A series of models at equal compute, and a scaling law: does a larger model always mean a better one?
//!
//! Every depth is trained with every budget of FLOPs (the isoFLOP profiles of Hoffmann et al. 2022, arXiv 2203.15556, approach 2), with
//! several seeds. The report has the losses, a fit of [`law::Law`] with bootstrap intervals, a plot, and one sentence.

pub mod law;
mod report;

use std::path::Path;

use llm_data::TokenDataset;
use llm_model::cost::Flops;
use llm_model::{ExpertsConfig, Head, ModelConfig, ModelType};
use llm_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};

use super::{PretrainInputs, PretrainRecipe, pretrain};
use crate::depth::{DepthSettings, checked_shape, multiplying_parameters};
use crate::run::{FINISHED, RunOptions, RunSetup, Start, write_json};
use crate::{Error, Result};

/// The recipe of a series of models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScalingRecipe {
    /// The first seed, for initial weights and data order.
    pub seed: u64,
    /// How many seeds each model is trained with; intervals need at least two.
    pub seeds: u64,
    /// Numbers of layers; see [`crate::depth`].
    pub depths: Vec<usize>,
    /// Training FLOPs.
    pub budgets: Vec<f64>,
    /// Experts of a mixture of experts, of which two are active, with the active parameters of the deepest model; 0: none.
    pub num_experts: usize,
    /// The keys of pre-training that are the same for all models.
    pub pretrain: PretrainRecipe,
}

impl Default for ScalingRecipe {
    /// The built-in recipe.
    fn default() -> Self {
        crate::recipe::default()
    }
}

/// A trained model of the series.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Trained {
    /// `dense` or `experts`.
    kind: &'static str,
    depth: usize,
    seed: u64,
    /// Parameters that multiply a token, and all parameters.
    parameters: f64,
    total: usize,
    tokens: f64,
    /// Training FLOPs that were asked for.
    budget: f64,
    loss: f64,
    bits_per_byte: f64,
}

/// A model of the series, before it is trained.
struct Planned {
    kind: &'static str,
    depth: usize,
    budget: f64,
    settings: DepthSettings,
    model: ModelConfig,
}

/// Trains the series in folders of `out`, writes `report.md`, `scaling.json` and `scaling.svg` there, and returns the report.
#[tracing::instrument(level = "debug", skip_all, fields(run = %out.as_ref().display()))]
pub fn scaling(
    recipe: &ScalingRecipe,
    inputs: &PretrainInputs,
    out: impl AsRef<Path>,
    options: RunOptions,
) -> Result<String> {
    let out = out.as_ref();
    if let Some(model) = &inputs.model {
        let model = model.display();
        return Err(Error::BadRequest(format!("{model}: a series trains new models of several sizes; remove --model")));
    }
    let setup = match RunSetup::check(recipe, inputs, out, options)? {
        Start::Open(setup) => setup,
        Start::Finished(_) => return report::read(out),
    };
    let vocab_size = Tokenizer::load(&inputs.tokenizer)?.vocab_size();
    let planned = plan(recipe, vocab_size)?;
    let train = inputs.data.iter().map(|dir| Ok(TokenDataset::open(dir, "train")?.len()));
    let tokens = train.collect::<Result<Vec<usize>>>()?.iter().sum();
    warn_about_passes(&planned, tokens);
    let (_, options, _lock) = setup.open_folder()?;
    let RunOptions { device, observer, stop, .. } = options;
    let mut trained = Vec::new();
    for model in &planned {
        for seed in recipe.seed..recipe.seed + recipe.seeds {
            let dir = out.join(format!("{}-depth-{}-{:e}-seed-{seed}", model.kind, model.depth, model.budget));
            let options = RunOptions::of_stage(&dir, &device, observer, stop);
            let outcome = pretrain(&model.recipe(recipe, seed), inputs, &dir, options)?;
            let metric = |name: &str| outcome.metrics.get(name).copied().unwrap_or(f64::NAN);
            let config = ModelConfig { vocab_size, ..model.model.clone() }.validated("model")?;
            trained.push(Trained {
                kind: model.kind,
                depth: model.depth,
                seed,
                parameters: model.settings.parameters,
                total: llm_model::ParamCount::of(&config, Head::LanguageModel).total(),
                tokens: (model.settings.steps * model.tokens_per_step(recipe)) as f64,
                budget: model.budget,
                loss: metric("eval_loss"),
                bits_per_byte: metric("eval_bits_per_byte"),
            });
        }
    }
    let text = report::write(&trained, out)?;
    write_json(&out.join(FINISHED), &serde_json::json!({}))?;
    Ok(text)
}

impl Planned {
    /// The recipe of one run. The vocabulary comes from the tokenizer, as in `pretrain`.
    fn recipe(&self, series: &ScalingRecipe, seed: u64) -> PretrainRecipe {
        let base = &series.pretrain;
        let mut optimizer = base.optimizer.clone();
        optimizer.learning_rate = self.settings.learning_rate;
        optimizer.warmup_steps = self.settings.warmup_steps;
        PretrainRecipe {
            seed,
            steps: self.settings.steps,
            batch_size: self.settings.batch_size,
            gradient_accumulation_steps: self.settings.gradient_accumulation_steps,
            optimizer,
            model: ModelConfig { vocab_size: base.model.vocab_size, ..self.model.clone() },
            ..base.clone()
        }
    }

    fn tokens_per_step(&self, series: &ScalingRecipe) -> u64 {
        self.settings.batch_size as u64 * self.settings.gradient_accumulation_steps * series.pretrain.seq_len as u64
    }
}

/// The models of the series: every depth with every budget, and those of the largest depth also as mixtures of experts.
fn plan(recipe: &ScalingRecipe, vocab_size: usize) -> Result<Vec<Planned>> {
    let base = ModelConfig { vocab_size, ..recipe.pretrain.model.clone() };
    let seq_len = recipe.pretrain.seq_len;
    let mut planned = Vec::new();
    for &depth in &recipe.depths {
        let flops = Flops::of(&checked_shape(depth, &base)?, Head::LanguageModel, seq_len as u64).training(false);
        for &budget in &recipe.budgets {
            let settings = DepthSettings::with_tokens(depth, &base, seq_len, budget / flops)?;
            let model = settings.model.clone();
            planned.push(Planned { kind: "dense", depth, budget, settings, model });
        }
    }
    let deepest = recipe.depths.iter().copied().max().unwrap_or(1);
    if recipe.num_experts > 0 {
        let dense = planned.iter().filter(|model| model.depth == deepest);
        let mixtures: Vec<Planned> = dense
            .map(|dense| {
                let model = with_experts(&dense.model, recipe.num_experts);
                let parameters = multiplying_parameters(&model);
                let settings = DepthSettings { parameters, ..dense.settings.clone() };
                Planned { kind: "experts", depth: deepest, budget: dense.budget, settings, model }
            })
            .collect();
        planned.extend(mixtures);
    }
    Ok(planned)
}

/// The same model with `num_experts` experts of half the width instead of each MLP; two are active, so that a token costs the same.
fn with_experts(dense: &ModelConfig, num_experts: usize) -> ModelConfig {
    let moe_intermediate_size = dense.intermediate_size / 2;
    ModelConfig {
        model_type: ModelType::Mixtral,
        intermediate_size: moe_intermediate_size,
        experts: Some(ExpertsConfig {
            num_experts,
            num_experts_per_tok: 2,
            moe_intermediate_size,
            router_aux_loss_coef: 0.01,
            router_z_loss_coef: 0.001,
            ..ExpertsConfig::default()
        }),
        ..dense.clone()
    }
}

/// Warns if a model reads the training text more than four times: more passes are worth less than new text (Muennighoff et al. 2023,
/// arXiv 2305.16264).
fn warn_about_passes(planned: &[Planned], train: usize) {
    let most = planned.iter().map(|model| model.settings.tokens).fold(0., f64::max);
    let passes = most / train.max(1) as f64;
    if passes > 4. {
        tracing::warn!(
            "a model reads the {train} training tokens {passes:.1} times; above 4 passes the losses do not follow a scaling law; give \
             more text or smaller budgets"
        );
    }
}

impl ScalingRecipe {
    /// Checks the lists. Errors name the key.
    pub(crate) fn check_series(&self) -> Result<()> {
        let wrong = |key: &str, rule: &str| Err(Error::BadRequest(format!("{key} must be {rule}")));
        if self.depths.is_empty() || self.depths.iter().any(|depth| !(1..=64).contains(depth)) {
            return wrong("depths", "a list of whole numbers from 1 to 64");
        }
        if self.budgets.is_empty() || self.budgets.iter().any(|budget| !(1e9..=1e24).contains(budget)) {
            return wrong("budgets", "a list of numbers of FLOPs from 1e9 to 1e24");
        }
        if self.num_experts == 1 {
            return wrong("num_experts", "0, or at least 2, of which two are active");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_depths_have_the_same_compute() {
        let recipe = ScalingRecipe::default();
        let planned = plan(&recipe, 2048).unwrap();
        assert_eq!(planned.len(), (recipe.depths.len() + 1) * recipe.budgets.len());
        for model in &planned {
            let config = ModelConfig { vocab_size: 2048, ..model.model.clone() };
            let seq_len = recipe.pretrain.seq_len as u64;
            let flops = Flops::of(&config, Head::LanguageModel, seq_len).training(false);
            let spent = flops * (model.settings.steps * model.tokens_per_step(&recipe)) as f64;
            // A mixture also has a router.
            assert!((spent / model.budget - 1.).abs() < 0.01, "{} of depth {}: {spent}", model.kind, model.depth);
        }
    }

    #[test]
    fn a_mixture_of_experts_has_the_active_parameters_of_the_dense_model() {
        let dense =
            DepthSettings::of(3, &ModelConfig { vocab_size: 512, ..ModelConfig::default() }, 64, 1.).unwrap().model;
        let mixture = with_experts(&dense, 8).validated("mixture").unwrap();
        let count = |config: &ModelConfig| llm_model::ParamCount::of(config, Head::LanguageModel);
        let (dense, mixture) = (count(&dense), count(&mixture));
        assert_eq!(mixture.active() - mixture.routers, dense.active());
        assert_eq!(mixture.experts, 4 * dense.mlp);
    }
}
