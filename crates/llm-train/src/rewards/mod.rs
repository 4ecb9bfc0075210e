//! What replies are worth: one reward for all stages that learn from scored replies.
//!
//! A [`Reward`] is a weighted sum of [`Source`]s: a reward model, a function, a program, a server, or a rule such as the right answer.
//! In a recipe each source is a table `[[rewards]]` ([`RewardTable`]). A score that is missing or not finite is an error that names the
//! source; it never becomes a number.

mod answers;
mod command;
mod ensemble;
mod http;
pub(crate) mod model;
mod shape;
mod table;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use candle_core::Device;
use llm_tokenizer::{ChatMessage, Conversation, Tokenizer};
use serde::Serialize;
use serde_json::Value;

pub use self::answers::{ExactAnswer, is_same_answer};
pub use self::command::Program;
pub use self::ensemble::{Combine, Ensemble};
pub use self::http::Server;
pub use self::model::{RewardModel, RewardScale};
pub use self::shape::{cosine, has_think_format, repetition, soft_overlong};
pub use self::table::{LengthShape, RewardTable, SourceTable};
use crate::{Error, Result};

/// A prompt of the data, ready for sampling.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prompt {
    /// The token ids up to the reply.
    pub query: Vec<u32>,
    /// The messages.
    pub messages: Vec<ChatMessage>,
    /// The row of the data file: it may contain the reference answer.
    pub row: Value,
}

impl Prompt {
    /// The prompt of a row, encoded up to the assistant's turn.
    pub fn encode(tokenizer: &Tokenizer, conversation: &Conversation, row: Value) -> Result<Self> {
        let query = tokenizer.encode_chat(conversation, true)?;
        Ok(Self { query, messages: conversation.messages.clone(), row })
    }
}

impl From<Vec<u32>> for Prompt {
    /// A prompt that is known as token ids only.
    fn from(query: Vec<u32>) -> Self {
        Self { query, ..Self::default() }
    }
}

/// A reply to score, and what is known about it.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Answer<'a> {
    /// The messages before the reply.
    pub prompt: &'a [ChatMessage],
    /// The row of the data file with the prompt: it may contain the reference answer.
    pub row: &'a Value,
    /// The token ids of the prompt, up to the reply.
    #[serde(skip)]
    pub query: &'a [u32],
    /// The token ids of the reply, with its end token if it has one.
    #[serde(skip)]
    pub response: &'a [u32],
    /// The text of the reply, without special tokens.
    #[serde(rename = "completion")]
    pub text: &'a str,
    /// Whether the reply ends with the end token; otherwise it was cut off.
    pub finished: bool,
}

impl Answer<'_> {
    /// Prompt and reply as one sequence.
    fn ids(&self) -> Vec<u32> {
        [self.query, self.response].concat()
    }

    /// The token ids of the reply without its end token.
    fn content(&self) -> &[u32] {
        match self.response.split_last() {
            Some((_, content)) if self.finished => content,
            _ => self.response,
        }
    }
}

/// A function that scores replies, one number each.
pub type ScoreFunction<'a> = Box<dyn Fn(&[Answer]) -> Result<Vec<f64>> + 'a>;

/// Where a score comes from.
pub enum Source<'a> {
    /// One reward model or several.
    Model(Ensemble),
    /// A function.
    Closure(ScoreFunction<'a>),
    /// A program.
    Command(Program),
    /// A server.
    Http(Server),
    /// 1 for the right final answer, else 0.
    ExactAnswer(ExactAnswer),
    /// 1 if the text of the reply has a match, else 0.
    Regex(regex::Regex),
    /// The number of tokens of the reply, its end token included.
    Length,
    /// [`soft_overlong`].
    SoftOverlong {
        /// The length from which a reply costs 1, in tokens.
        max_tokens: usize,
        /// The number of tokens before `max_tokens` in which the penalty grows.
        cache_tokens: usize,
    },
    /// [`cosine`] of the length in tokens, for right and wrong answers.
    Cosine {
        /// The length from which the reward is constant, in tokens.
        max_tokens: usize,
        /// What makes an answer right.
        answer: ExactAnswer,
    },
    /// [`repetition`] of token ids.
    Repetition {
        /// The number of tokens of an n-gram.
        ngram: usize,
    },
    /// 1 for [`has_think_format`], else 0.
    Format,
}

impl fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())
    }
}

impl Source<'_> {
    /// The name of the kind, as in recipes.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Model(_) => "model",
            Self::Closure(_) => "closure",
            Self::Command(_) => "command",
            Self::Http(_) => "http",
            Self::ExactAnswer(_) => "exact_answer",
            Self::Regex(_) => "regex",
            Self::Length | Self::SoftOverlong { .. } | Self::Cosine { .. } => "length",
            Self::Repetition { .. } => "repetition",
            Self::Format => "format",
        }
    }

    /// Whether it reads token ids only.
    fn reads_ids_only(&self) -> bool {
        matches!(self, Self::Model(_) | Self::Length | Self::SoftOverlong { .. } | Self::Repetition { .. })
    }

    fn scores(&self, answers: &[Answer]) -> Result<Vec<f64>> {
        let each = |score: &dyn Fn(&Answer) -> f64| Ok(answers.iter().map(score).collect());
        let share = |is: bool| f64::from(u8::from(is));
        match self {
            Self::Model(ensemble) => ensemble.scores(answers),
            Self::Closure(function) => function(answers),
            Self::Command(program) => program.scores(answers),
            Self::Http(server) => server.scores(answers),
            Self::ExactAnswer(exact) => answers.iter().map(|answer| exact.is_right(answer).map(share)).collect(),
            Self::Regex(pattern) => each(&|answer| share(pattern.is_match(answer.text))),
            Self::Length => each(&|answer| answer.response.len() as f64),
            Self::SoftOverlong { max_tokens, cache_tokens } => {
                each(&|answer| soft_overlong(answer.response.len(), *max_tokens, *cache_tokens))
            }
            Self::Cosine { max_tokens, answer: exact } => answers
                .iter()
                .map(|answer| Ok(cosine(answer.response.len(), *max_tokens, exact.is_right(answer)?)))
                .collect(),
            Self::Repetition { ngram } => each(&|answer| repetition(answer.content(), *ngram)),
            Self::Format => each(&|answer| share(has_think_format(answer.text))),
        }
    }
}

/// A source with its weight.
#[derive(Debug)]
struct Weighted<'a> {
    /// The name in metrics and errors: unique.
    name: String,
    weight: f64,
    source: Source<'a>,
}

/// Count, sum and sum of squares of the scores of a source.
#[derive(Debug, Clone, Copy, Default)]
struct Moments {
    count: f64,
    sum: f64,
    squares: f64,
}

/// A weighted sum of sources.
#[derive(Debug, Default)]
pub struct Reward<'a> {
    sources: Vec<Weighted<'a>>,
    /// Decodes replies for sources that read text.
    tokenizer: Option<Tokenizer>,
    /// The scores since the last [`Self::take_metrics`], by source.
    moments: Mutex<Vec<Moments>>,
}

impl<'a> Reward<'a> {
    /// The sources of these tables of a recipe. `folders` are those of `--reward`; without tables each run is scored by all of them.
    /// `tokenizer` decodes the replies.
    pub fn open(tables: &[RewardTable], folders: &[PathBuf], tokenizer: &Tokenizer) -> Result<Self> {
        let mut reward = Self { tokenizer: Some(tokenizer.clone()), ..Self::default() };
        let default = [RewardTable::of_models()];
        let tables = if tables.is_empty() { &default } else { tables };
        table::check_folders(tables, folders)?;
        for table in tables {
            reward.push(table.name.clone(), table.weight, table.open(folders)?);
        }
        Ok(reward)
    }

    /// A reward with one source of weight 1.
    pub fn of(source: Source<'a>) -> Self {
        let mut reward = Self::default();
        reward.push(None, 1., source);
        reward
    }

    /// A reward that is a function of the answers.
    pub fn closure(function: impl Fn(&[Answer]) -> Result<Vec<f64>> + 'a) -> Self {
        Self::of(Source::Closure(Box::new(function)))
    }

    /// A reward that is a function of the token ids of prompt and reply, one row for each reply.
    pub fn of_rows(function: impl Fn(&[Vec<u32>]) -> Result<Vec<f64>> + 'a) -> Self {
        Self::closure(move |answers| function(&answers.iter().map(Answer::ids).collect::<Vec<_>>()))
    }

    /// Adds a source. Without a name it has that of its kind; a name that is taken gets a number.
    pub fn push(&mut self, name: Option<String>, weight: f64, source: Source<'a>) {
        let wanted = name.unwrap_or_else(|| source.kind().to_owned());
        let is_taken = |name: &String| self.sources.iter().any(|known| known.name == *name);
        let numbered = (2..).map(|number| format!("{wanted}_{number}"));
        let name = std::iter::once(wanted.clone()).chain(numbered).find(|name| !is_taken(name));
        self.sources.push(Weighted { name: name.unwrap_or(wanted), weight, source });
        self.moments.get_mut().unwrap_or_else(PoisonError::into_inner).push(Moments::default());
    }

    /// The reward of each answer: the sum of weight times score over all sources.
    pub fn score(&self, answers: &[Answer]) -> Result<Vec<f64>> {
        let mut total = vec![0.; answers.len()];
        if answers.is_empty() {
            return Ok(total);
        }
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (source, moments) in self.sources.iter().zip(&mut moments) {
            let scores = source.source.scores(answers).map_err(|error| named(&source.name, error))?;
            check(&source.name, &scores, answers.len())?;
            for (total, score) in total.iter_mut().zip(scores) {
                *total += source.weight * score;
                moments.count += 1.;
                moments.sum += score;
                moments.squares += score * score;
            }
        }
        *self.moments.lock().unwrap_or_else(PoisonError::into_inner) = moments;
        Ok(total)
    }

    /// The reward of each reply to a prompt; `eos` is the end token.
    pub fn score_replies<'p>(
        &self,
        replies: impl IntoIterator<Item = (&'p Prompt, &'p [u32])>,
        eos: u32,
    ) -> Result<Vec<f64>> {
        let replies: Vec<_> = replies.into_iter().collect();
        let reads_text = self.sources.iter().any(|source| !source.source.reads_ids_only());
        let decode = |(_, response): &(&Prompt, &[u32])| match &self.tokenizer {
            Some(tokenizer) if reads_text => Ok(tokenizer.decode(response)?),
            _ => Ok(String::new()),
        };
        let texts = replies.iter().map(decode).collect::<Result<Vec<String>>>()?;
        let mut answers = Vec::with_capacity(replies.len());
        for (&(prompt, response), text) in replies.iter().zip(&texts) {
            let (finished, query) = (response.last() == Some(&eos), prompt.query.as_slice());
            answers.push(Answer { prompt: &prompt.messages, row: &prompt.row, query, response, text, finished });
        }
        self.score(&answers)
    }

    /// Mean and population standard deviation of the scores of each source since the last call, before the weights:
    /// `rewards/NAME/mean` and `rewards/NAME/std` (TRL).
    pub fn take_metrics(&self) -> Vec<(String, f64)> {
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let mut metrics = Vec::new();
        for (source, moments) in self.sources.iter().zip(moments.iter_mut()) {
            let Moments { count, sum, squares } = std::mem::take(moments);
            if count > 0. {
                let mean = sum / count;
                let std = (squares / count - mean * mean).max(0.).sqrt();
                metrics.push((format!("rewards/{}/mean", source.name), mean));
                metrics.push((format!("rewards/{}/std", source.name), std));
            }
        }
        metrics
    }

    /// The reward models, in the order of the sources.
    pub fn models(&self) -> impl Iterator<Item = &RewardModel> {
        self.sources.iter().flat_map(|source| match &source.source {
            Source::Model(ensemble) => ensemble.models.as_slice(),
            _ => &[],
        })
    }

    /// Moves the reward models to a device.
    pub fn to_device(&mut self, device: &Device) -> Result<()> {
        for model in self.models_mut() {
            model.model = model.model.to_device(device)?;
        }
        Ok(())
    }

    /// The reward models, to set their scale.
    pub fn models_mut(&mut self) -> impl Iterator<Item = &mut RewardModel> {
        self.sources.iter_mut().flat_map(|source| match &mut source.source {
            Source::Model(ensemble) => ensemble.models.as_mut_slice(),
            _ => &mut [],
        })
    }
}

/// The error of a source, with its name.
fn named(name: &str, error: Error) -> Error {
    match error {
        Error::BadRequest(message) => Error::BadRequest(format!("the reward \"{name}\": {message}")),
        error => error,
    }
}

/// Returns an error unless there is one finite score for each answer.
fn check(name: &str, scores: &[f64], answers: usize) -> Result<()> {
    let wrong = |message: String| Err(Error::BadRequest(format!("the reward \"{name}\": {message}")));
    if scores.len() != answers {
        return wrong(format!("{} scores for {answers} replies; it must give one per reply", scores.len()));
    }
    match scores.iter().position(|score| !score.is_finite()) {
        Some(at) => {
            let score = scores[at];
            wrong(format!("the score of reply {} of {answers} is {score}; a score must be a finite number", at + 1))
        }
        None => Ok(()),
    }
}
