//! What a model is measured by, and the points of the frontier.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Device;
use llm_data::ChatMessage;
use llm_engine::{GenerateOptions, Sampling, TextModel};
use llm_eval::{GeneratedReply, generate_replies, reply_kls};
use llm_synthetic::{Question, Split, Use, World};
use serde::{Deserialize, Serialize};

use super::CompareAlignmentRecipe;
use crate::best_of::{ScoredReply, expected_best, kl_bound};
use crate::recipes::lifecycle::Folders;
use crate::rewards::RewardModel;
use crate::run::write_json;
use crate::{Error, Result};

/// A model of the comparison; all numbers but `kl` and `score` are true ones, which no method sees.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Point {
    /// The KL divergence from the fine-tuned model, in nats per reply; of best-of-n its bound.
    pub kl: f64,
    /// The mean score of the reward model.
    pub score: f64,
    /// The mean true utility.
    pub utility: f64,
    /// The share of replies with dangerous advice; none for best-of-n.
    pub unsafe_share: Option<f64>,
    /// Replies to the example; none for best-of-n.
    pub example: Option<Example>,
}

/// Replies to one question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Example {
    /// The share of replies in jargon.
    pub jargon_share: f64,
    /// The first of these.
    pub jargon: Option<String>,
    /// The first other reply.
    pub plain: Option<String>,
}

/// The points of one seed, by method; stored in a file.
#[derive(Debug)]
pub(super) struct Points {
    path: PathBuf,
    all: BTreeMap<String, Vec<Point>>,
}

impl Points {
    /// Reads the file if it exists.
    pub fn open(path: &Path) -> Result<Self> {
        let all = match std::fs::read_to_string(path) {
            Ok(text) => serde_json::from_str(&text).map_err(|e| Error::BadFile(format!("{}: {e}", path.display())))?,
            Err(_) => BTreeMap::new(),
        };
        Ok(Self { path: path.to_owned(), all })
    }

    /// The points of a method, in the order of training.
    pub fn of(&self, method: &str) -> &[Point] {
        self.all.get(method).map_or(&[], Vec::as_slice)
    }

    /// Adds points and writes the file.
    pub fn add(&mut self, method: &str, points: impl IntoIterator<Item = Point>) -> Result<()> {
        self.all.entry(method.to_owned()).or_default().extend(points);
        let value = serde_json::to_value(&self.all);
        write_json(&self.path, &value.map_err(|e| Error::Internal(format!("{}: {e}", self.path.display())))?)
    }
}

/// Replies to the example.
const EXAMPLES: usize = 64;
/// Replies per forward pass.
const BATCH: usize = 64;

/// Measures models on questions about held-out themes.
pub(super) struct Measuring<'a> {
    instruct: TextModel,
    reward: RewardModel,
    questions: Vec<Question>,
    prompts: Vec<Vec<u32>>,
    example: Question,
    temperature: f64,
    max_new_tokens: usize,
    device: &'a Device,
}

impl<'a> Measuring<'a> {
    /// Loads the fine-tuned model and the reward model.
    pub fn load(recipe: &CompareAlignmentRecipe, world: &World, from: &Folders, device: &'a Device) -> Result<Self> {
        let instruct = TextModel::load(&from.instruct)?.to_device(device)?;
        let mut reward = RewardModel::load(&from.reward)?;
        reward.model = reward.model.to_device(device)?;
        let questions = world.questions(Split::HeldOut, Use::Validation, recipe.questions);
        let ids = |question: &Question| instruct.chat_ids(&[ChatMessage::user(&question.prompt)]);
        let prompts = questions.iter().map(ids).collect::<Result<Vec<_>, _>>()?;
        let ppo = &recipe.pipeline.ppo;
        let (temperature, max_new_tokens) = (ppo.temperature, ppo.max_new_tokens);
        Ok(Self { instruct, reward, questions, prompts, example: world.example(), temperature, max_new_tokens, device })
    }

    /// The point of the model in a folder.
    pub fn measure(&self, model: &Path) -> Result<Point> {
        let model = TextModel::load(model)?.to_device(self.device)?;
        let replies = self.replies(&model, &self.prompts)?;
        let ids: Vec<Vec<u32>> = replies.iter().map(|reply| reply.ids.clone()).collect();
        let kls = reply_kls(&model.model, &self.instruct.model, &self.prompts, &ids, self.temperature)?;
        let each = || self.questions.iter().zip(&replies);
        let utilities: Vec<f64> = each().map(|(q, reply)| q.utility(&reply.text).total()).collect();
        let dangerous: Vec<bool> = each().map(|(q, reply)| q.is_unsafe(&reply.text)).collect();
        Ok(Point {
            kl: mean(&kls),
            score: mean(&self.scores(&self.prompts, &replies)?),
            utility: mean(&utilities),
            unsafe_share: Some(share(&dangerous)),
            example: Some(self.example_of(&model)?),
        })
    }

    fn example_of(&self, model: &TextModel) -> Result<Example> {
        let prompt = model.chat_ids(&[ChatMessage::user(&self.example.prompt)])?;
        let replies = self.replies(model, &vec![prompt; EXAMPLES])?;
        let plain = |reply: &GeneratedReply| !self.example.is_jargon(&reply.text);
        let first = |wanted: bool| replies.iter().find(|reply| plain(reply) == wanted).map(|reply| reply.text.clone());
        let jargon: Vec<bool> = replies.iter().map(|reply| !plain(reply)).collect();
        Ok(Example { jargon_share: share(&jargon), jargon: first(false), plain: first(true) })
    }

    /// The points of best-of-n from the fine-tuned model, for n = 1, 2, 4, … up to `most`.
    pub fn best_of_n(&self, most: usize) -> Result<Vec<Point>> {
        let repeated: Vec<Vec<u32>> =
            self.prompts.iter().flat_map(|prompt| std::iter::repeat_n(prompt.clone(), most)).collect();
        let replies = self.replies(&self.instruct, &repeated)?;
        let scores = self.scores(&repeated, &replies)?;
        let scored = |i: usize| ScoredReply {
            score: scores[i],
            utility: self.questions[i / most].utility(&replies[i].text).total(),
        };
        let prompts: Vec<Vec<ScoredReply>> =
            (0..self.prompts.len()).map(|at| (at * most..(at + 1) * most).map(scored).collect()).collect();
        let sizes = std::iter::successors(Some(1), |n| Some(2 * n)).take_while(|&n| n <= most);
        let point = |n: usize| {
            let best = expected_best(&prompts, n)?;
            let (score, utility) = (best.score, best.utility);
            Ok(Point { kl: kl_bound(n), score, utility, unsafe_share: None, example: None })
        };
        sizes.map(point).collect()
    }

    fn replies(&self, model: &TextModel, prompts: &[Vec<u32>]) -> Result<Vec<GeneratedReply>> {
        let options = GenerateOptions {
            max_new_tokens: self.max_new_tokens,
            stop_ids: Some(model.stop_ids()),
            sampling: Sampling { temperature: self.temperature, seed: Some(42), ..Sampling::default() },
        };
        Ok(generate_replies(model, prompts, &options, BATCH)?)
    }

    fn scores(&self, prompts: &[Vec<u32>], replies: &[GeneratedReply]) -> Result<Vec<f64>> {
        let rows: Vec<Vec<u32>> = prompts.iter().zip(replies).map(|(q, r)| [q.as_slice(), &r.ids].concat()).collect();
        let chunks = rows.chunks(BATCH).map(|rows| self.reward.scores(rows)).collect::<Result<Vec<_>>>()?;
        Ok(chunks.concat())
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn share(values: &[bool]) -> f64 {
    values.iter().filter(|&&value| value).count() as f64 / values.len().max(1) as f64
}
