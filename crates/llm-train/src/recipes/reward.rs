//! The reward model: one score per conversation, trained on ranked answers (Bradley and Terry 1952; Stiennon et al. 2020, arXiv
//! 2009.01325; K-way loss of Ouyang et al. 2022, arXiv 2203.02155).

mod data;
mod quality;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use llm_engine::{GenerateOptions, Sampling};
use llm_model::{Head, LoraConfig, Model};
use llm_tokenizer::ChatFormat;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use self::data::{EncodedRanking, offset_orders, rankings};
use self::quality::Quality;
use super::{chat_format, load_model, load_tokenizer};
use crate::adapters::{Adapters, dropout_seed, tokenizer_folder};
use crate::batches::{BatchSize, LengthBatches};
use crate::compat::check_compatible;
use crate::data::{DataOptions, one_or_several};
use crate::examples::take_evenly;
use crate::loss::Comparisons;
use crate::optim::OptimizerConfig;
use crate::rewards::RewardScale;
use crate::rewards::model::{SCALE, rewards_of, sampled_rows, scores_and_routing, total};
use crate::routing::RouterMetrics;
use crate::run::{Evaluating, Evaluation, OPTIMIZER, Outcome, Plan, RunOptions, RunSetup, Start, rng, write_json};
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
    /// The loss of a ranking.
    pub loss: RankingLoss,
    /// Whether tied answers are trained to have equal scores. Otherwise ties are left out.
    pub ties: bool,
    /// The names and weights of several scores of an answer, such as accuracy and safety; the reward is their weighted sum. Rankings by
    /// one of these qualities train its score, other rankings train the reward. Empty: one score, the reward.
    pub heads: BTreeMap<String, f64>,
    /// Weight of the penalty `(better + worse)²`, which keeps scores near 0.
    pub center_rewards_coefficient: f64,
    /// Replies of the model to prompts of the data, over which the scores have mean 0 and deviation 1 at the end; 0: over answers of
    /// the data. PPO measures its own scale.
    pub normalize_samples: usize,
    /// Token limit of these replies.
    pub normalize_max_new_tokens: usize,
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

/// The loss of a ranking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RankingLoss {
    /// The mean over pairs ([`loss::k_way_with_ties`]).
    KWay,
    /// The probability of the whole order ([`loss::list_wise`]).
    PlackettLuce,
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

/// Trains a reward model. The run folder `out` becomes its Hugging Face folder: a sequence classifier with a label for each head.
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
    let mut base = with_heads(&policy, recipe)?;
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
                let quality = Quality::measure(&model, &validation, recipe.batch_size, pad)?;
                log_quality(&quality, recipe, evaluating)
            }),
        }),
        write: adapters.writer(&tokenizer),
    })?;

    for step in run.steps() {
        let prompts: Vec<&EncodedRanking> = batches.batch(step.index).into_iter().map(|i| &train[i]).collect();
        // All answers of all prompts in one forward pass: scores (rows, heads).
        let rows: Vec<Vec<u32>> = prompts.iter().flat_map(|p| p.rows.iter().cloned()).collect();
        let (scores, routing) =
            scores_and_routing(&learner.model, &rows, size.padding(pad), Some(dropout_seed(recipe.seed, step.index)))?;
        let (rewards, columns) = columns(recipe, &learner.model, &scores)?;
        let orders = offset_orders(&prompts);
        let loss = ranking_loss(recipe, &columns, &orders)?;
        let mut routers = RouterMetrics::default();
        learner.backward(&routers.add(&loss, routing.as_ref(), 1.)?)?;
        let learning_rate = recipe.optimizer.learning_rate_at(step.index, steps);
        let grad_norm = learner.step(learning_rate)?;
        let mut metrics = vec![("loss", loss::scalar(&loss)?)];
        metrics.extend(score_metrics(&rewards, &columns, &orders)?);
        metrics.extend([("grad_norm", grad_norm), ("learning_rate", learning_rate)]);
        metrics.extend(step.throughput(rows.iter().map(Vec::len).sum()));
        step.finish(&learner, &metrics, routers.metrics())?;
    }
    let model = learner.model.frozen()?;
    let scale = scale_of(recipe, &model, train, || adapters.below(&policy), [end_of_turn, pad])?;
    run.check_finite(steps, &[("reward_mean", scale.mean), ("reward_std", scale.std)])?;
    run.finish_with(&[(OPTIMIZER, &learner)], |dir| {
        save_with_scale(&model, recipe, scale, dir, |model| adapters.save(model, &tokenizer, dir))
    })
}

/// The reward of each answer `(rows,)`, and the rewards followed by the scores of each head `(rows · (1 + heads),)`.
fn columns(recipe: &RewardRecipe, model: &Model, scores: &Tensor) -> Result<(Tensor, Tensor)> {
    let rewards = total(model, scores)?;
    let columns = match recipe.heads.is_empty() {
        true => rewards.clone(),
        false => Tensor::cat(&[rewards.clone(), scores.t()?.flatten_all()?], 0)?,
    };
    Ok((rewards, columns))
}

fn ranking_loss(recipe: &RewardRecipe, columns: &Tensor, orders: &[Comparisons]) -> Result<Tensor> {
    match recipe.loss {
        RankingLoss::KWay => loss::k_way_with_ties(columns, orders, recipe.center_rewards_coefficient),
        RankingLoss::PlackettLuce => loss::list_wise(columns, orders, recipe.center_rewards_coefficient),
    }
}

/// The scale of the scores over answers of the data, or over replies that `reference` samples.
fn scale_of(
    recipe: &RewardRecipe,
    model: &Model,
    train: Vec<EncodedRanking>,
    reference: impl FnOnce() -> Result<Model>,
    [end_of_turn, pad]: [u32; 2],
) -> Result<RewardScale> {
    let scores = match recipe.normalize_samples {
        0 => {
            let answers = take_evenly(train, recipe.eval_batches * recipe.batch_size);
            Quality::measure(model, &answers, recipe.batch_size, pad)?.scores
        }
        count => {
            let prompts: Vec<_> = take_evenly(train, count).into_iter().map(|ranking| ranking.query).collect();
            let reference = reference()?.to_device(&model.device())?;
            let rows = sampled_rows(&reference, &prompts, &samples(recipe, end_of_turn), recipe.batch_size)?;
            rewards_of(model, &rows, recipe.batch_size, pad)?
        }
    };
    Ok(RewardScale::of(&scores))
}

/// Logs how well the scores agree with the validation rankings; the last time also as a table.
fn log_quality(quality: &Quality, recipe: &RewardRecipe, evaluating: &Evaluating) -> Result<()> {
    let heads: Vec<&str> = recipe.heads.keys().map(String::as_str).collect();
    let metrics = quality.metrics(&heads, recipe.seed);
    let named: Vec<(&str, f64)> = metrics.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    if evaluating.is_last() {
        evaluating.sample(&quality.table())?;
    }
    evaluating.log(&named, &quality.summary(&metrics))
}

/// The frozen model with a score head, or several.
fn with_heads(policy: &Model, recipe: &RewardRecipe) -> Result<Model> {
    let head = match recipe.heads.len() {
        0 | 1 => Head::Sequence,
        count => Head::Scores(count),
    };
    let mut base = policy.frozen_with_head(head, recipe.seed)?;
    base.extra.extend(label_keys(&recipe.heads));
    Ok(base)
}

/// The keys of `config.json` for heads with these names and weights.
fn label_keys(heads: &BTreeMap<String, f64>) -> Vec<(String, Value)> {
    if heads.is_empty() {
        return Vec::new();
    }
    let names: Map<String, Value> = heads.keys().enumerate().map(|(id, name)| (id.to_string(), json!(name))).collect();
    let ids: Map<String, Value> = heads.keys().enumerate().map(|(id, name)| (name.clone(), json!(id))).collect();
    let keys = [("reward_heads", json!(heads)), ("id2label", names.into()), ("label2id", ids.into())];
    keys.map(|(key, value)| (key.to_owned(), value)).to_vec()
}

/// How replies are sampled to measure the scale of the scores.
fn samples(recipe: &RewardRecipe, end_of_turn: u32) -> GenerateOptions {
    let sampling = Sampling { temperature: 1., seed: Some(rng(recipe.seed, 9, 0).random()), ..Sampling::default() };
    GenerateOptions { max_new_tokens: recipe.normalize_max_new_tokens, stop_ids: Some(vec![end_of_turn]), sampling }
}

/// Saves a reward model with mean and deviation of its scores, as the scale of a reward is arbitrary. PPO measures its own scale, over
/// replies of the reference model.
fn save_with_scale(
    model: &Model,
    recipe: &RewardRecipe,
    scale: RewardScale,
    dir: &Path,
    save: impl FnOnce(&Model) -> Result<()>,
) -> Result<()> {
    let mut model = model.clone();
    let numbers = [("reward_mean".to_owned(), json!(scale.mean)), ("reward_std".to_owned(), json!(scale.std))];
    model.extra.extend(numbers.clone());
    if !model.active_adapters().is_empty() {
        let mut keys = Map::from_iter(numbers); // an adapter has no config.json
        if !recipe.heads.is_empty() {
            keys.insert("reward_heads".to_owned(), json!(recipe.heads));
        }
        write_json(&dir.join(SCALE), &keys.into())?;
    }
    save(&model)
}

/// The metrics of a batch: accuracy and margin of all pairs among `columns`, and the range of the rewards `(rows,)`.
fn score_metrics(rewards: &Tensor, columns: &Tensor, orders: &[Comparisons]) -> Result<[(&'static str, f64); 5]> {
    let numbers =
        |tensor: &Tensor| -> Result<Vec<f64>> { Ok(tensor.to_vec1::<f32>()?.into_iter().map(f64::from).collect()) };
    let (rewards, columns) = (numbers(rewards)?, numbers(columns)?);
    let pairs = orders.iter().flat_map(|order| &order.pairs);
    let margins: Vec<f64> = pairs.map(|&(better, worse)| columns[better] - columns[worse]).collect();
    let n = margins.len().max(1) as f64;
    Ok([
        ("accuracy", margins.iter().filter(|margin| **margin > 0.).count() as f64 / n),
        ("margin", margins.iter().sum::<f64>() / n),
        ("min_reward", rewards.iter().copied().fold(f64::INFINITY, f64::min)),
        ("mean_reward", rewards.iter().sum::<f64>() / rewards.len() as f64),
        ("max_reward", rewards.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
    ])
}
