//! The reward model: one score for a conversation, learnt from ranked answers (Bradley and Terry 1952; Stiennon et al.
//! 2020, arXiv 2009.01325; the K-way form of Ouyang et al. 2022, arXiv 2203.02155).

use std::path::Path;

use candle_core::Tensor;
use llm_data::{Ranking, read_rankings};
use llm_infer::{GenerateOptions, generate_from};
use llm_model::{Batch, Head, Model, Routing};
use llm_tokenizer::{ChatFormat, ChatMessage, Tokenizer};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{chat_format, load_model};
use crate::eval::is_eval_step;
use crate::examples::{LengthBatches, chat_messages, pick_rows, spread};
use crate::fitting::fitting;
use crate::optim::OptimizerConfig;
use crate::routing::RouterLog;
use crate::run::{Input, Opening, Outcome, RunOptions, Start, learner};
use crate::splits::{Source, train_and_held_out};
use crate::{Result, loss};

/// The numbers of a reward model's training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RewardRecipe {
    /// Seed of the score head and of the order of the prompts.
    pub seed: u64,
    /// Passes over the rankings.
    pub epochs: u64,
    /// Prompts of a step; all answers of a prompt go through the model together.
    pub batch_size: usize,
    /// Answers that make the conversation longer than this, in tokens, are left out with their ranking.
    pub max_length: usize,
    /// Weight of `(better + worse)²`, which keeps the scores around zero.
    pub center_rewards_coefficient: f64,
    /// The share of the prompts that is held out if there is no file of its own for that.
    pub held_out_share: f64,
    /// Steps between two evaluations; 0: only at the end.
    pub eval_every: u64,
    /// Batches of each evaluation, spread over the held-out rankings, and of the pass at the end that measures the scale of
    /// the scores; 0: all.
    pub eval_batches: usize,
    /// Steps between two checkpoints; 0: only at the end.
    pub save_every: u64,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
}

impl Default for RewardRecipe {
    fn default() -> Self {
        let optimizer =
            OptimizerConfig { learning_rate: 3e-4, eps: 1e-5, weight_decay: 0., ..OptimizerConfig::default() };
        Self {
            seed: 42,
            epochs: 1,
            batch_size: 16,
            max_length: 512,
            center_rewards_coefficient: 0.01,
            held_out_share: 0.1,
            eval_every: 50,
            eval_batches: 10,
            save_every: 50,
            optimizer,
        }
    }
}

/// What [`reward`] reads.
#[derive(Debug, Clone, Copy)]
pub struct RewardInputs<'a> {
    /// The folder of the fine-tuned model to start from.
    pub model: &'a Path,
    /// Ranked answers.
    pub data: &'a Path,
    /// Ranked answers to test on; none: a share of the prompts of `data`.
    pub held_out: Option<&'a Path>,
}

/// The answers of one prompt in token ids, with their pairs (better, worse) and the margin of these.
struct Ranked {
    rows: Vec<Vec<u32>>,
    pairs: Vec<(usize, usize)>,
    margin: f64,
}

/// Trains a reward model; the run folder `out` becomes its Hugging Face folder (a classifier with one label).
pub fn reward(recipe: &RewardRecipe, inputs: RewardInputs, out: &Path, options: RunOptions) -> Result<Outcome> {
    let read =
        Input::given([("model", Some(inputs.model)), ("data", Some(inputs.data)), ("held_out", inputs.held_out)]);
    let opening = match Opening::check(recipe, read, out, options)? {
        Start::Open(opening) => opening,
        Start::Finished(outcome) => return Ok(outcome),
    };
    let mut tokenizer = Tokenizer::from_dir(inputs.model)?;
    if !tokenizer.has_chat_template() {
        tokenizer = tokenizer.with_default_chat_template()?;
    }
    let ChatFormat { end_of_turn, pad, .. } = *chat_format(&tokenizer, inputs.model)?;
    let policy = load_model(inputs.model, Head::LanguageModel)?;
    fitting(policy.config(), (&tokenizer, inputs.model), &[])?;
    let max_length = recipe.max_length.min(policy.config().max_position_embeddings);
    let (train, held_out) = rankings(recipe, &inputs, &tokenizer, max_length)?;
    let held_out = spread(held_out, recipe.eval_batches * recipe.batch_size);
    let mut learner = learner(opening.checkpoint(), &recipe.optimizer, || {
        let mut model = policy.with_head(Head::Sequence, recipe.seed)?;
        model.set_eos_token_id(Some(end_of_turn));
        Ok(model)
    })?;
    let longest = |ranked: &Ranked| ranked.rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut batches = LengthBatches::new(train.iter().map(longest).collect(), recipe.batch_size, recipe.seed)?;
    let steps = batches.per_epoch() * recipe.epochs;
    let first = opening.step();
    let mut run = opening.open(steps, recipe.save_every)?;
    run.begin(steps, first, "steps");

    for step in first..steps {
        let prompts: Vec<&Ranked> = batches.batch(step).into_iter().map(|i| &train[i]).collect();
        // All answers of all prompts in one forward: (rows,) scores.
        let rows: Vec<Vec<u32>> = prompts.iter().flat_map(|p| p.rows.iter().cloned()).collect();
        let (scores, routing) = scores_and_routing(&learner.model, &rows, pad)?;
        let pairs = offset_pairs(&prompts);
        let margins: Vec<f64> = prompts.iter().map(|p| p.margin).collect();
        let loss = loss::k_way(&scores, &pairs, &margins, recipe.center_rewards_coefficient)?;
        let mut routers = RouterLog::default();
        learner.backward(&routers.add(&loss, routing.as_ref(), 1.)?)?;
        let learning_rate = recipe.optimizer.learning_rate_at(step, steps);
        let grad_norm = learner.step(learning_rate)?;
        let (done, mean_loss) = (step + 1, loss::scalar(&loss)?);
        run.check_step(done, &[("loss", mean_loss), ("grad_norm", grad_norm)])?;
        let scores: Vec<f64> = scores.to_vec1::<f32>()?.into_iter().map(f64::from).collect();
        let (accuracy, margin) = accuracy_and_margin(&scores, &pairs);
        let figures = [
            ("loss", mean_loss),
            ("accuracy", accuracy),
            ("margin", margin),
            ("min_reward", scores.iter().copied().fold(f64::INFINITY, f64::min)),
            ("mean_reward", scores.iter().sum::<f64>() / scores.len() as f64),
            ("max_reward", scores.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
            ("grad_norm", grad_norm),
            ("learning_rate", learning_rate),
        ];
        run.log_with(done, &figures, routers.figures())?;
        run.progress(done, &format!("loss {mean_loss:.3}, accuracy {accuracy:.2}"));
        if is_eval_step(done, recipe.eval_every, steps) {
            run.progress(done, "evaluating");
            let (accuracy, margin, ..) = evaluate(&learner.model.frozen()?, &held_out, recipe.batch_size, pad)?;
            run.log(done, &[("eval_accuracy", accuracy), ("eval_margin", margin)])?;
            tracing::info!("step {done}: {:.1} % of the held-out pairs ranked right", 100. * accuracy);
        }
        if run.is_due(done) {
            run.checkpoint_of(done, &learner, &tokenizer)?;
        }
    }
    // The scale of a reward is arbitrary: over these answers it has mean 0 and deviation 1 for whoever uses the scores as they
    // are. PPO scales anew, over replies of its reference.
    let mut model = learner.model.frozen()?;
    let answers = spread(train, recipe.eval_batches * recipe.batch_size);
    let (_, _, mean, std) = evaluate(&model, &answers, recipe.batch_size, pad)?;
    run.check_finite(steps, &[("reward_mean", mean), ("reward_std", std)])?;
    model.extra.insert("reward_mean".to_owned(), json!(mean));
    model.extra.insert("reward_std".to_owned(), json!(std));
    run.finish(&[&learner], |dir| {
        tokenizer.save(dir)?;
        Ok(model.save(dir)?)
    })
}

/// The score of each row of token ids, at its last token: `(rows,)`; and what the routers did, if there are experts.
fn scores_and_routing(model: &Model, rows: &[Vec<u32>], pad: u32) -> Result<(Tensor, Option<Routing>)> {
    let batch = Batch::right_padded(rows, pad)?;
    let width = batch.input_ids.dim(1)?;
    let last = rows.iter().enumerate().map(|(i, row)| (i * width + row.len() - 1) as u32).collect();
    let (hidden, routing) = model.hidden_and_routing(&batch)?; // (rows, width, hidden)
    Ok((model.output(&pick_rows(&hidden, last)?)?.squeeze(1)?, routing))
}

/// The scores alone.
fn score_rows(model: &Model, rows: &[Vec<u32>], pad: u32) -> Result<Tensor> {
    Ok(scores_and_routing(model, rows, pad)?.0)
}

/// The pairs of each prompt as indices into the scores of all prompts.
fn offset_pairs(prompts: &[&Ranked]) -> Vec<Vec<(usize, usize)>> {
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

/// Accuracy and mean margin over all pairs, mean and standard deviation over all scores.
fn evaluate(model: &Model, rankings: &[Ranked], batch_size: usize, pad: u32) -> Result<(f64, f64, f64, f64)> {
    let mut scores = Vec::new();
    for chunk in rankings.chunks(batch_size) {
        let rows: Vec<Vec<u32>> = chunk.iter().flat_map(|p| p.rows.iter().cloned()).collect();
        scores.extend(score_rows(model, &rows, pad)?.to_vec1::<f32>()?.into_iter().map(f64::from));
    }
    let (accuracy, margin) = accuracy_and_margin(&scores, &offset_pairs(&rankings.iter().collect::<Vec<_>>()));
    let RewardScale { mean, std } = RewardScale::of(&scores);
    Ok((accuracy, margin, mean, std))
}

/// The rankings to learn from and those to test on, in token ids.
fn rankings(
    recipe: &RewardRecipe,
    inputs: &RewardInputs,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<(Vec<Ranked>, Vec<Ranked>)> {
    let (data, held_out) = (inputs.data, inputs.held_out);
    let source = Source { data, held_out, held_out_share: recipe.held_out_share, seed: recipe.seed, max_length };
    let read = |path: &Path| {
        let read = read_rankings(path)?;
        Ok((read.rankings, read.warnings))
    };
    train_and_held_out(&source, read, |ranking: &Ranking| {
        let rows = ranking.answers.iter().map(|answer| conversation_ids(tokenizer, &ranking.prompt, answer));
        let rows = rows.collect::<Result<Vec<_>>>()?;
        let fits = rows.iter().all(|row| row.len() <= max_length);
        Ok(fits.then(|| Ranked { rows, pairs: ranking.pairs(), margin: ranking.margin }))
    })
}

/// A whole conversation up to the token that ends its last turn, where its score is read: the row that PPO scores too.
fn conversation_ids(tokenizer: &Tokenizer, prompt: &[llm_data::Message], answer: &str) -> Result<Vec<u32>> {
    let mut messages = chat_messages(prompt);
    messages.push(ChatMessage::new("assistant", answer));
    Ok(tokenizer.encode_answered(&messages)?)
}

/// What is subtracted from a reward model's raw scores, and what they are divided by.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RewardScale {
    /// The mean of the raw scores.
    pub mean: f64,
    /// Their standard deviation (of the population), above 0.
    pub std: f64,
}

impl RewardScale {
    /// The scale that gives these raw scores mean 0 and deviation 1; where they do not differ, deviations stay as they are.
    pub fn of(scores: &[f64]) -> Self {
        let n = scores.len().max(1) as f64;
        let mean = scores.iter().sum::<f64>() / n;
        let std = (scores.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / n).sqrt();
        Self { mean, std: if std > 0. { std } else { 1. } }
    }
}

/// A trained reward model with the scale of its scores.
#[derive(Debug)]
pub struct RewardModel {
    /// The model.
    pub model: Model,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Of its scores: that of its folder at first (mean 0 and deviation 1 over the answers that it was trained on).
    pub scale: RewardScale,
    pad: u32,
}

impl RewardModel {
    /// The reward model of a folder that [`reward`] wrote, or any classifier with one label (unscaled).
    pub fn load(dir: &Path) -> Result<Self> {
        let (model, tokenizer) = (load_model(dir, Head::Sequence)?, Tokenizer::from_dir(dir)?);
        fitting(model.config(), (&tokenizer, dir), &[])?;
        let number = |key: &str| model.extra.get(key).and_then(serde_json::Value::as_f64).filter(|x| x.is_finite());
        let (mean, std) = (number("reward_mean").unwrap_or(0.), number("reward_std").filter(|&s| s > 0.).unwrap_or(1.));
        let pad = chat_format(&tokenizer, dir)?.pad;
        Ok(Self { pad, model, tokenizer, scale: RewardScale { mean, std } })
    }

    /// The scores of whole conversations in token ids, read at the last token of each.
    pub fn scores(&self, rows: &[Vec<u32>]) -> Result<Vec<f64>> {
        let RewardScale { mean, std } = self.scale;
        Ok(self.raw_scores(rows)?.into_iter().map(|score| (score - mean) / std).collect())
    }

    fn raw_scores(&self, rows: &[Vec<u32>]) -> Result<Vec<f64>> {
        Ok(score_rows(&self.model, rows, self.pad)?.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
    }

    /// The scale in which the replies of `policy` to `prompts` (in token ids, up to the assistant's turn) have mean 0 and
    /// deviation 1: a price of KL means something in no other unit (Ziegler et al. 2019, arXiv 1909.08593, section 2.2).
    ///
    /// The replies are drawn as `options` say, `batch_size` at a time; the same options give the same scale.
    pub fn scale_on(
        &self,
        policy: &Model,
        prompts: &[Vec<u32>],
        options: &GenerateOptions,
        batch_size: usize,
    ) -> Result<RewardScale> {
        let mut scores = Vec::with_capacity(prompts.len());
        let size = batch_size.max(1);
        for (i, prompts) in prompts.chunks(size).enumerate() {
            let replies = generate_from(policy, prompts, i * size, options, |_, _| true)?;
            let rows: Vec<Vec<u32>> = prompts.iter().zip(replies).map(|(p, r)| [p.as_slice(), &r].concat()).collect();
            scores.extend(self.raw_scores(&rows)?);
        }
        Ok(RewardScale::of(&scores))
    }

    /// A critic that begins with what this model says, in the unit of [`Self::scores`]: the score head, with mean and
    /// deviation folded into its weight and bias, applied to every token. It trains.
    pub fn critic(&self) -> Result<Model> {
        let critic = self.model.with_head(Head::Token, 0)?; // the head has this model's weight and a bias of 0
        let head = critic.params().vars();
        let (weight, bias) = (&head["score.weight"], &head["score.bias"]);
        let RewardScale { mean, std } = self.scale;
        weight.set(&(weight.as_tensor() / std)?)?;
        bias.set(&((bias.as_tensor() - mean)? / std)?)?;
        Ok(critic)
    }

    /// The scores of the answers of a ranking, in their order there.
    pub fn answer_scores(&self, ranking: &Ranking) -> Result<Vec<f64>> {
        let rows = ranking.answers.iter().map(|a| conversation_ids(&self.tokenizer, &ranking.prompt, a));
        self.scores(&rows.collect::<Result<Vec<_>>>()?)
    }

    /// The share of pairs of these rankings that the model orders as they do.
    pub fn accuracy(&self, rankings: &[Ranking]) -> Result<f64> {
        let (mut right, mut all) = (0., 0.);
        for ranking in rankings {
            let scores = self.answer_scores(ranking)?;
            for (better, worse) in ranking.pairs() {
                right += f64::from(u8::from(scores[better] > scores[worse]));
                all += 1.;
            }
        }
        Ok(right / f64::max(all, 1.))
    }
}
