//! The reward model: one score per conversation, trained on ranked answers (Bradley and Terry 1952; Stiennon et al. 2020, arXiv
//! 2009.01325; K-way loss of Ouyang et al. 2022, arXiv 2203.02155).

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use llm_data::{Ranking, ReadOptions, read_rankings};
use llm_model::{Head, LoraConfig, Model};
use llm_tokenizer::{ChatFormat, Tokenizer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{chat_format, load_model, load_tokenizer};
use crate::adapters::{Adapters, dropout_seed, tokenizer_folder};
use crate::batches::{BatchSize, LengthBatches};
use crate::compat::check_compatible;
use crate::data::{DataOptions, one_or_several};
use crate::examples::take_evenly;
use crate::optim::OptimizerConfig;
use crate::rewards::RewardScale;
use crate::rewards::model::{SCALE, conversation_ids, score_rows, scores_and_routing};
use crate::routing::RouterMetrics;
use crate::run::{Evaluation, OPTIMIZER, Outcome, Plan, RunOptions, RunSetup, Start, write_json};
use crate::splits::{Encoded, Source, train_and_validation};
use crate::{Result, loss};

/// The recipe of a reward model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardRecipe {
    /// Seed for the score head and the data order.
    pub seed: u64,
    /// Number of passes over the rankings.
    pub epochs: u64,
    /// Prompts per step, each with all its answers, padded to the longest; with `max_tokens`: prompts per batch of an evaluation only.
    pub batch_size: usize,
    /// Packs prompts, each with all its answers, into steps of at most this many tokens by best-fit decreasing, without padding; 0:
    /// steps of `batch_size` prompts. At least `max_length`, and at least the tokens of all answers to a prompt.
    pub max_tokens: usize,
    /// Rankings with a longer conversation are left out, in tokens.
    pub max_length: usize,
    /// Weight of the penalty `(better + worse)²`, which keeps scores near 0.
    pub center_rewards_coefficient: f64,
    /// Without a validation file: the share of the prompts of the data to use for validation, above 0 and below 1.
    pub validation_share: f64,
    /// Steps between evaluations on the validation split; 0: only at the end.
    pub eval_every: u64,
    /// Batches per evaluation, spread evenly over the validation split, and batches of the final measurement of the score scale; 0:
    /// all.
    pub eval_batches: usize,
    /// Steps between checkpoints; 0: only at the end.
    pub save_every: u64,
    /// How the data files are read.
    pub data: DataOptions,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// A LoRA adapter to train instead of the model's weights. The run writes the adapter in the PEFT format, with the score head, and no model.
    pub lora: Option<LoraConfig>,
}

impl Default for RewardRecipe {
    /// The built-in recipe.
    fn default() -> Self {
        crate::recipe::default()
    }
}

/// The inputs of [`reward`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct RewardInputs {
    /// Folder of the fine-tuned model to start from; on the command line also org/name of the Hugging Face hub.
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR"))]
    pub model: PathBuf,
    /// Files or folders of ranked answers: chosen and rejected (TRL, HH), or answers and order; may be repeated.
    #[cfg_attr(feature = "cli", arg(long, required = true, num_args = 1.., value_name = "PATH"))]
    #[serde(deserialize_with = "one_or_several")]
    pub data: Vec<PathBuf>,
    /// Validation rankings [default: those of the recipe's `validation_share` of the prompts of --data].
    #[cfg_attr(feature = "cli", arg(long, alias = "held-out", value_name = "FILE", display_order = 3))]
    pub validation: Option<PathBuf>,
    /// Folder of an adapter of an earlier stage, in the format of PEFT. Without a table `lora` its training goes on; with one it is frozen,
    /// and a new adapter is trained on top of it [default: none].
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR", display_order = 4))]
    pub adapter: Option<PathBuf>,
}

/// A ranking in token ids: one row per answer, index pairs (better, worse), and their margin.
#[derive(Clone)]
struct EncodedRanking {
    rows: Vec<Vec<u32>>,
    pairs: Vec<(usize, usize)>,
    margin: f64,
}

/// Trains a reward model. The run folder `out` becomes its Hugging Face folder (a sequence classifier with one label).
#[tracing::instrument(level = "debug", skip_all, fields(run = %out.as_ref().display()))]
pub fn reward(
    recipe: &RewardRecipe,
    inputs: &RewardInputs,
    out: impl AsRef<Path>,
    options: RunOptions,
) -> Result<Outcome> {
    let setup = match RunSetup::check(recipe, inputs, out.as_ref(), options)? {
        Start::Open(setup) => setup,
        Start::Finished(outcome) => return Ok(outcome),
    };
    let folder = tokenizer_folder(&inputs.model, inputs.adapter.as_ref());
    let mut tokenizer = load_tokenizer(folder)?;
    if !tokenizer.has_chat_template() {
        tokenizer = tokenizer.with_default_chat_template()?;
    }
    let tokenizer = tokenizer.with_end_of_turn_as_eos();
    let ChatFormat { end_of_turn, pad, .. } = *chat_format(&tokenizer, folder)?;
    let policy = load_model(&inputs.model, Head::LanguageModel)?;
    check_compatible(policy.config(), (&tokenizer, folder), &[])?;
    let max_length = recipe.max_length.min(policy.config().max_position_embeddings);
    let (train, validation) = rankings(recipe, inputs, &tokenizer, max_length)?;
    let validation = take_evenly(validation, recipe.eval_batches * recipe.batch_size);
    let mut base = policy.frozen_with_head(Head::Sequence, recipe.seed)?;
    base.set_end_of_turn(end_of_turn);
    let adapters = Adapters::new(&inputs.model, recipe.lora.as_ref(), inputs.adapter.as_ref(), recipe.seed);
    let mut learner = adapters.learner(&base, &setup, &recipe.optimizer)?;
    let size = BatchSize::of_recipe(recipe.batch_size, recipe.max_tokens);
    let length = |ranked: &EncodedRanking| {
        let lengths = ranked.rows.iter().map(Vec::len);
        if recipe.max_tokens == 0 { lengths.max().unwrap_or(0) } else { lengths.sum() }
    };
    let mut batches = LengthBatches::new(train.iter().map(length).collect(), size, recipe.seed)?;
    let steps = batches.count(recipe.epochs);
    let run = setup.open(Plan {
        steps,
        save_every: recipe.save_every,
        unit: ("steps", 1),
        shown: &[("loss", "loss", 3), ("accuracy", "accuracy", 2)],
        evaluation: Some(Evaluation {
            every: recipe.eval_every,
            selection: None,
            size: format!("{} rankings", validation.len()),
            run: Box::new(|model, evaluating| {
                let (accuracy, margin, ..) = evaluate(&model, &validation, recipe.batch_size, pad)?;
                let summary = format!("{:.1} % of the validation pairs ranked correctly", 100. * accuracy);
                evaluating.log(&[("eval_accuracy", accuracy), ("eval_margin", margin)], &summary)
            }),
        }),
        write: adapters.writer(&tokenizer),
    })?;

    for step in run.steps() {
        let prompts: Vec<&EncodedRanking> = batches.batch(step.index).into_iter().map(|i| &train[i]).collect();
        // All answers of all prompts in one forward pass: scores (rows,).
        let rows: Vec<Vec<u32>> = prompts.iter().flat_map(|p| p.rows.iter().cloned()).collect();
        let (scores, routing) =
            scores_and_routing(&learner.model, &rows, size.padding(pad), Some(dropout_seed(recipe.seed, step.index)))?;
        let pairs = offset_pairs(&prompts);
        let margins: Vec<f64> = prompts.iter().map(|p| p.margin).collect();
        let loss = loss::k_way(&scores, &pairs, &margins, recipe.center_rewards_coefficient)?;
        let mut routers = RouterMetrics::default();
        learner.backward(&routers.add(&loss, routing.as_ref(), 1.)?)?;
        let learning_rate = recipe.optimizer.learning_rate_at(step.index, steps);
        let grad_norm = learner.step(learning_rate)?;
        let mut metrics = vec![("loss", loss::scalar(&loss)?)];
        metrics.extend(score_metrics(&scores, &pairs)?);
        metrics.extend([("grad_norm", grad_norm), ("learning_rate", learning_rate)]);
        metrics.extend(step.throughput(rows.iter().map(Vec::len).sum()));
        step.finish(&learner, &metrics, routers.metrics())?;
    }
    let answers = take_evenly(train, recipe.eval_batches * recipe.batch_size);
    let (_, _, mean, std) = evaluate(&learner.model.frozen()?, &answers, recipe.batch_size, pad)?;
    run.check_finite(steps, &[("reward_mean", mean), ("reward_std", std)])?;
    run.finish_with(&[(OPTIMIZER, &learner)], |dir| {
        save_with_scale(&learner.model, mean, std, dir, |model| adapters.save(model, &tokenizer, dir))
    })
}

/// Saves a reward model with mean and deviation of its scores over a sample of answers, as the scale of a reward is arbitrary. PPO
/// measures its own scale, over replies of the reference model.
fn save_with_scale(
    model: &Model,
    mean: f64,
    std: f64,
    dir: &Path,
    save: impl FnOnce(&Model) -> Result<()>,
) -> Result<()> {
    let mut model = model.frozen()?;
    let scale = [("reward_mean", json!(mean)), ("reward_std", json!(std))];
    model.extra.extend(scale.clone().map(|(key, value)| (key.to_owned(), value)));
    if !model.active_adapters().is_empty() {
        write_json(&dir.join(SCALE), &Value::from_iter(scale))?; // an adapter has no config.json
    }
    save(&model)
}

/// The metrics of the scores `(rows,)` of a batch.
fn score_metrics(scores: &Tensor, pairs: &[Vec<(usize, usize)>]) -> Result<[(&'static str, f64); 5]> {
    let scores: Vec<f64> = scores.to_vec1::<f32>()?.into_iter().map(f64::from).collect();
    let (accuracy, margin) = accuracy_and_margin(&scores, pairs);
    Ok([
        ("accuracy", accuracy),
        ("margin", margin),
        ("min_reward", scores.iter().copied().fold(f64::INFINITY, f64::min)),
        ("mean_reward", scores.iter().sum::<f64>() / scores.len() as f64),
        ("max_reward", scores.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
    ])
}

/// The pairs of each prompt, as indices into the concatenated scores of all prompts.
fn offset_pairs(prompts: &[&EncodedRanking]) -> Vec<Vec<(usize, usize)>> {
    let mut offset = 0;
    let mut all = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        all.push(prompt.pairs.iter().map(|(b, w)| (b + offset, w + offset)).collect());
        offset += prompt.rows.len();
    }
    all
}

fn accuracy_and_margin(scores: &[f64], pairs: &[Vec<(usize, usize)>]) -> (f64, f64) {
    let margins: Vec<f64> = pairs.iter().flatten().map(|&(b, w)| scores[b] - scores[w]).collect();
    let n = margins.len().max(1) as f64;
    (margins.iter().filter(|m| **m > 0.).count() as f64 / n, margins.iter().sum::<f64>() / n)
}

/// (accuracy, mean margin) over all pairs, (mean, standard deviation) over all scores.
fn evaluate(model: &Model, rankings: &[EncodedRanking], batch_size: usize, pad: u32) -> Result<(f64, f64, f64, f64)> {
    let mut scores = Vec::new();
    for chunk in rankings.chunks(batch_size) {
        let rows: Vec<Vec<u32>> = chunk.iter().flat_map(|p| p.rows.iter().cloned()).collect();
        scores.extend(score_rows(model, &rows, pad)?.to_vec1::<f32>()?.into_iter().map(f64::from));
    }
    let (accuracy, margin) = accuracy_and_margin(&scores, &offset_pairs(&rankings.iter().collect::<Vec<_>>()));
    let RewardScale { mean, std } = RewardScale::of(&scores);
    Ok((accuracy, margin, mean, std))
}

/// Training and validation rankings in token ids.
fn rankings(
    recipe: &RewardRecipe,
    inputs: &RewardInputs,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<(Vec<EncodedRanking>, Vec<EncodedRanking>)> {
    let source = Source {
        data: &inputs.data,
        validation: inputs.validation.as_deref(),
        validation_share: recipe.validation_share,
        seed: recipe.seed,
        max_length,
        options: &recipe.data,
    };
    let read = |path: &Path, options: &ReadOptions| {
        let read = read_rankings(path, options)?;
        Ok((read.rankings, read.warnings))
    };
    train_and_validation(&source, read, |ranking: &Ranking| {
        let rows = ranking.answers.iter().map(|answer| conversation_ids(tokenizer, &ranking.prompt, answer));
        let rows = rows.collect::<Result<Vec<_>>>()?;
        let fits = rows.iter().all(|row| row.len() <= max_length);
        Ok(match fits {
            true => Encoded::Fits(EncodedRanking { rows, pairs: ranking.pairs(), margin: ranking.margin }),
            false => Encoded::TooLong,
        })
    })
}
