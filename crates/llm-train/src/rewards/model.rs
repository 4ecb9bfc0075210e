//! A trained reward model: its scores, their scale, and the critic that starts from it.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use llm_data::Ranking;
use llm_engine::{GenerateOptions, generate_from};
use llm_model::{Batch, Head, Model, Routing};
use llm_tokenizer::{ChatMessage, Tokenizer};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::adapters::base_of_adapter;
use crate::compat::{TokenSource, check_compatible};
use crate::examples::{gather_rows, rows_to_batch};
use crate::load::{chat_format, load_model};
use crate::{Error, Result};

/// The file with the score scale of a reward model that is an adapter.
pub(crate) const SCALE: &str = "reward_scale.json";

/// Conversations per forward pass, so that memory does not grow with their number.
const SCORED_TOGETHER: usize = 16;

/// The normalisation of raw scores: `(score - mean) / std`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RewardScale {
    /// The mean of the raw scores.
    pub mean: f64,
    /// The population standard deviation of the raw scores, positive.
    pub std: f64,
}

impl RewardScale {
    /// The scale that gives these raw scores mean 0 and deviation 1. If all are equal `std` is 1.
    pub fn of(scores: &[f64]) -> Self {
        let n = scores.len().max(1) as f64;
        let mean = scores.iter().sum::<f64>() / n;
        let std = (scores.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / n).sqrt();
        Self { mean, std: if std > 0. { std } else { 1. } }
    }
}

/// A trained reward model with its score scale.
#[derive(Debug)]
pub struct RewardModel {
    /// The model.
    pub model: Model,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its folder, for messages.
    pub dir: PathBuf,
    /// The score scale: initially that of the folder (mean 0 and deviation 1 over training answers).
    pub scale: RewardScale,
    pad: u32,
}

impl RewardModel {
    /// Loads a folder written by [`reward`](crate::recipes::reward), a model or an adapter, or any sequence classifier (unscaled). The
    /// model of an adapter is the folder that its `adapter_config.json` names.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let is_adapter = dir.join("adapter_config.json").is_file() && !dir.join("config.json").is_file();
        let model = if is_adapter { load_adapter(dir)? } else { load_classifier(dir)? };
        let tokenizer = Tokenizer::load(dir)?;
        check_compatible(model.config(), (&tokenizer, dir), &[])?;
        let number = |key: &str| model.extra.get(key).and_then(Value::as_f64).filter(|x| x.is_finite());
        let (mean, std) = (number("reward_mean").unwrap_or(0.), number("reward_std").filter(|&s| s > 0.).unwrap_or(1.));
        let pad = chat_format(&tokenizer, dir)?.pad;
        Ok(Self { pad, model, tokenizer, dir: dir.to_owned(), scale: RewardScale { mean, std } })
    }

    /// The model as a reader of the token ids of a stage.
    pub(crate) fn token_source(&self) -> TokenSource<'_> {
        TokenSource::Model { config: self.model.config(), tokenizer: &self.tokenizer, dir: &self.dir }
    }

    /// The scaled scores of conversations in token ids, read at the last token of each.
    pub fn scores(&self, rows: &[Vec<u32>]) -> Result<Vec<f64>> {
        let RewardScale { mean, std } = self.scale;
        Ok(self.raw_scores(rows)?.into_iter().map(|score| (score - mean) / std).collect())
    }

    fn raw_scores(&self, rows: &[Vec<u32>]) -> Result<Vec<f64>> {
        rewards_of(&self.model, rows, SCORED_TOGETHER, self.pad)
    }

    /// The raw scores of each head, in the order of the labels, for each conversation in token ids.
    pub fn head_scores(&self, rows: &[Vec<u32>]) -> Result<Vec<Vec<f64>>> {
        let scores = score_rows(&self.model, rows, self.pad)?.to_vec2::<f32>()?;
        Ok(scores.into_iter().map(|heads| heads.into_iter().map(f64::from).collect()).collect())
    }

    /// The scale that gives replies of `policy` to `prompts` (token ids up to the assistant's turn) mean 0 and deviation 1, so that a
    /// KL coefficient is comparable between reward models (Ziegler et al. 2019, arXiv 1909.08593, section 2.2).
    ///
    /// Replies are sampled with `options`, `batch_size` at a time. The same options give the same scale.
    pub fn scale_on(
        &self,
        policy: &Model,
        prompts: &[Vec<u32>],
        options: &GenerateOptions,
        batch_size: usize,
    ) -> Result<RewardScale> {
        let rows = sampled_rows(policy, prompts, options, batch_size)?;
        Ok(RewardScale::of(&rewards_of(&self.model, &rows, batch_size, self.pad)?))
    }

    /// A trainable critic that initially predicts [`Self::scores`] at every token: the weighted sum of the heads, with mean and deviation
    /// folded into its weight and bias.
    pub fn critic(&self) -> Result<Model> {
        let merged = if self.model.active_adapters().is_empty() { None } else { Some(self.model.merged()?) };
        let model = merged.as_ref().unwrap_or(&self.model);
        let heads = model.params().get("score.weight")?.to_dense()?; // (heads, hidden)
        let critic = model.with_head(Head::Token, 0)?; // its bias is 0
        let head = critic.params().vars();
        let (weight, bias) = (&head["score.weight"], &head["score.bias"]);
        let RewardScale { mean, std } = self.scale;
        weight.set(&(total(model, &heads.t()?)?.unsqueeze(0)? / std)?)?;
        bias.set(&((bias.as_tensor() - mean)? / std)?)?;
        Ok(critic)
    }

    /// The scores of the answers of a ranking, in order.
    pub fn answer_scores(&self, ranking: &Ranking) -> Result<Vec<f64>> {
        let rows = ranking.answers.iter().map(|a| conversation_ids(&self.tokenizer, &ranking.prompt, a));
        self.scores(&rows.collect::<Result<Vec<_>>>()?)
    }

    /// The share of pairs that the model orders as the rankings do.
    pub fn accuracy(&self, rankings: &[Ranking]) -> Result<f64> {
        let (mut correct, mut all) = (0., 0.);
        for ranking in rankings {
            let scores = self.answer_scores(ranking)?;
            for (better, worse) in ranking.pairs() {
                correct += f64::from(u8::from(scores[better] > scores[worse]));
                all += 1.;
            }
        }
        Ok(correct / f64::max(all, 1.))
    }
}

/// The scores `(rows, heads)`, read at the last token of each row, and the routing of a model with experts. The batch is right-padded with
/// `pad`, or ragged without it; `dropout` is the seed of the dropout of a trained adapter.
pub(crate) fn scores_and_routing(
    model: &Model,
    rows: &[Vec<u32>],
    pad: Option<u32>,
    dropout: Option<u64>,
) -> Result<(Tensor, Option<Routing>)> {
    let (batch, starts) = rows_to_batch(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>(), pad)?;
    let last = starts.into_iter().zip(rows).map(|(start, row)| (start + row.len() - 1) as u32).collect();
    let batch = Batch { dropout, ..batch };
    let (hidden, routing) = model.hidden_and_routing(&batch)?; // (rows, width, hidden) or (1, n, hidden)
    Ok((model.output(&gather_rows(&hidden, last)?)?, routing))
}

/// The reward `(rows,)` of scores `(rows, heads)`: their weighted sum.
pub(crate) fn total(model: &Model, scores: &Tensor) -> Result<Tensor> {
    let weights = model.score_weights();
    if weights == [1.] {
        return Ok(scores.squeeze(1)?);
    }
    let (count, device) = (weights.len(), scores.device());
    let weights = Tensor::from_vec(weights, (count, 1), &Device::Cpu)?.to_dtype(scores.dtype())?.to_device(device)?;
    Ok(scores.broadcast_mul(&weights.t()?)?.sum(1)?)
}

/// The rewards of conversations in token ids, `batch_size` at a time.
pub(crate) fn rewards_of(model: &Model, rows: &[Vec<u32>], batch_size: usize, pad: u32) -> Result<Vec<f64>> {
    let mut rewards = Vec::with_capacity(rows.len());
    for rows in rows.chunks(batch_size.max(1)) {
        let of_batch = total(model, &score_rows(model, rows, pad)?)?.to_vec1::<f32>()?;
        rewards.extend(of_batch.into_iter().map(f64::from));
    }
    Ok(rewards)
}

/// Replies of `policy` to `prompts`, `batch_size` at a time, each with its prompt.
pub(crate) fn sampled_rows(
    policy: &Model,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    batch_size: usize,
) -> Result<Vec<Vec<u32>>> {
    let (size, mut rows) = (batch_size.max(1), Vec::with_capacity(prompts.len()));
    for (i, prompts) in prompts.chunks(size).enumerate() {
        let replies = generate_from(policy, prompts, i * size, options, |_, _| true)?;
        rows.extend(prompts.iter().zip(replies).map(|(prompt, reply)| [prompt.as_slice(), &reply].concat()));
    }
    Ok(rows)
}

/// The scores `(rows, heads)`, read at the last token of each row.
pub(crate) fn score_rows(model: &Model, rows: &[Vec<u32>], pad: u32) -> Result<Tensor> {
    Ok(scores_and_routing(model, rows, Some(pad), None)?.0)
}

/// A conversation up to the end token of its last turn, where the score is read. PPO scores the same rows.
pub(crate) fn conversation_ids(tokenizer: &Tokenizer, prompt: &[ChatMessage], answer: &str) -> Result<Vec<u32>> {
    let mut messages = prompt.to_vec();
    messages.push(ChatMessage::new("assistant", answer));
    Ok(tokenizer.encode_answered(&messages)?)
}

/// The model of a folder, which must have scores.
fn load_classifier(dir: &Path) -> Result<Model> {
    let model = Model::load(dir)?;
    match model.head() {
        Head::Sequence | Head::Scores(_) => load_model(dir, model.head()),
        _ => load_model(dir, Head::Sequence), // the error
    }
}

/// A reward model that is an adapter: its base model with the adapter, which must have the score head.
fn load_adapter(dir: &Path) -> Result<Model> {
    let read = |name: &str| -> Result<Value> {
        let path = dir.join(name);
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        serde_json::from_str(&text).map_err(|e| Error::BadFile(format!("{}: {e}", path.display())))
    };
    let config = read("adapter_config.json")?;
    let wrong =
        |message: String| Err(Error::BadFile(format!("{}: {message}", dir.join("adapter_config.json").display())));
    if config.get("task_type").and_then(Value::as_str) != Some("SEQ_CLS") {
        let task = config.get("task_type").unwrap_or(&Value::Null);
        return wrong(format!(
            "\"task_type\" is {task}; this adapter has no score head; a reward model needs \"SEQ_CLS\""
        ));
    }
    let base = base_of_adapter(dir)?;
    let keys = match dir.join(SCALE).is_file() {
        true => read(SCALE)?.as_object().cloned().unwrap_or_default(),
        false => serde_json::Map::new(),
    };
    let head = match keys.get("reward_heads").and_then(Value::as_object).map_or(1, serde_json::Map::len) {
        0 | 1 => Head::Sequence,
        count => Head::Scores(count),
    };
    let model = Model::load(&base)?;
    let mut model = if model.head() == head { model } else { model.frozen_with_head(head, 0)? };
    model.load_adapter("reward", dir)?;
    model.use_adapter(Some("reward"))?;
    model.extra.extend(keys);
    Ok(model)
}
