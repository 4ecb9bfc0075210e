//! The tables `[[rewards]]` of the recipes: a `kind`, a `weight`, and the keys of the kind.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::{Combine, Ensemble, ExactAnswer, Program, RewardModel, Server, Source};
use crate::limits::keys::{Keys, Real};
use crate::{Error, Result};

/// A source of a reward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Table", into = "Table")]
pub struct RewardTable {
    /// The name in metrics and errors; `None`: the kind.
    pub name: Option<String>,
    /// The factor of its scores in the sum; a negative one makes a penalty.
    pub weight: f64,
    /// The source.
    pub source: SourceTable,
}

/// The keys of a kind of source. Unknown keys are errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SourceTable {
    /// The reward models of `--reward`.
    Model {
        /// The numbers of the folders of `--reward`, from 1; empty: all.
        #[serde(default)]
        folders: Vec<usize>,
        /// How the scores of several models become one.
        #[serde(default)]
        combine: Combine,
    },
    /// A program: one JSON line in, one number out, for each reply.
    Command {
        /// The program and its arguments.
        command: Vec<String>,
        /// The longest wait for a score, in seconds.
        #[serde(default = "default_timeout")]
        timeout_seconds: f64,
    },
    /// A server: a batch of replies is posted as JSON.
    Http {
        /// The address, `http://…` or `https://…`.
        url: String,
        /// The longest wait for an answer of the server, in seconds.
        #[serde(default = "default_timeout")]
        timeout_seconds: f64,
        /// How often a request is repeated after a failure that may pass.
        #[serde(default = "default_retries")]
        retries: u32,
    },
    /// 1 for the right final answer, else 0.
    ExactAnswer {
        /// The column of the data with the right answer.
        #[serde(default = "default_column")]
        column: String,
    },
    /// 1 if the text of the reply has a match, else 0.
    Regex {
        /// A regular expression (syntax of the crate `regex`).
        pattern: String,
    },
    /// The length of the reply in tokens, or a function of it.
    Length {
        /// The function.
        #[serde(default)]
        shape: LengthShape,
        /// The length from which the function is constant.
        max_tokens: Option<usize>,
        /// Of `soft_overlong`: the tokens before `max_tokens` in which the penalty grows.
        cache_tokens: Option<usize>,
        /// Of `cosine`: the column of the data with the right answer.
        column: Option<String>,
    },
    /// The penalty of repeated n-grams, from -1 to 0.
    Repetition {
        /// The number of tokens of an n-gram.
        #[serde(default = "default_ngram")]
        ngram: usize,
    },
    /// 1 for a reply that begins with one block `<think>…</think>`, else 0.
    Format {},
}

/// What the length of a reply is worth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LengthShape {
    /// The number of tokens.
    #[default]
    Tokens,
    /// [`super::soft_overlong`].
    SoftOverlong,
    /// [`super::cosine`].
    Cosine,
}

fn default_timeout() -> f64 {
    60.
}

fn default_retries() -> u32 {
    3
}

fn default_column() -> String {
    "answer".to_owned()
}

fn default_ngram() -> usize {
    3
}

impl TryFrom<Table> for RewardTable {
    type Error = String;

    fn try_from(mut table: Table) -> Result<Self, String> {
        let name = match table.remove("name") {
            None => None,
            Some(Value::String(name)) if !name.is_empty() && !name.contains('/') => Some(name),
            Some(other) => return Err(format!("name is {other}; it must be a text without \"/\"")),
        };
        let weight = match table.remove("weight") {
            None => 1.,
            Some(Value::Float(weight)) => weight,
            Some(Value::Integer(weight)) => weight as f64,
            Some(other) => return Err(format!("weight is {other}; it must be a number")),
        };
        let source = Value::Table(table).try_into().map_err(|error: toml::de::Error| {
            let message = error.message().replace('`', "\"");
            message.replace("unknown field", "unknown key").replace("missing field", "missing key")
        })?;
        Ok(Self { name, weight, source })
    }
}

impl From<RewardTable> for Table {
    fn from(reward: RewardTable) -> Self {
        // The fields are texts, numbers and lists, which TOML can write.
        let mut table = Self::try_from(&reward.source).unwrap_or_default();
        table.insert("weight".to_owned(), reward.weight.into());
        if let Some(name) = reward.name {
            table.insert("name".to_owned(), name.into());
        }
        table
    }
}

impl RewardTable {
    /// A source of weight 1.
    pub fn new(source: SourceTable) -> Self {
        Self { name: None, weight: 1., source }
    }

    /// All folders of `--reward`.
    pub(super) fn of_models() -> Self {
        Self::new(SourceTable::Model { folders: Vec::new(), combine: Combine::Mean })
    }

    /// Checks the keys; `at` is the place of the table, such as `rewards[0].`.
    pub(crate) fn check(&self, at: &str) -> Result<()> {
        let keys = Keys { table: at };
        if !self.weight.is_finite() || self.weight == 0. {
            return Err(keys.wrong("weight", &self.weight.to_string(), "a number other than 0"));
        }
        match &self.source {
            SourceTable::Model { folders, .. } if folders.contains(&0) => {
                return Err(keys.wrong("folders", "0", "numbers from 1: the places of the folders of --reward"));
            }
            SourceTable::Command { command, timeout_seconds } => {
                keys.real("timeout_seconds", *timeout_seconds, Real::Positive)?;
                if command.first().is_none_or(String::is_empty) {
                    return Err(keys.wrong(
                        "command",
                        "empty",
                        "a program and its arguments, such as [\"python3\", \"score.py\"]",
                    ));
                }
            }
            SourceTable::Http { url, timeout_seconds, retries } => {
                keys.real("timeout_seconds", *timeout_seconds, Real::Positive)?.whole("retries", *retries, 0..=100)?;
                if !url.starts_with("http://") && !url.starts_with("https://") {
                    return Err(keys.wrong("url", url, "an address that begins with http:// or https://"));
                }
            }
            SourceTable::Regex { pattern } => {
                regex::Regex::new(pattern).map_err(|error| {
                    let error = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
                    keys.wrong("pattern", pattern, &format!("a regular expression: {error}"))
                })?;
            }
            SourceTable::Length { shape, max_tokens, cache_tokens, column } => {
                check_length(keys, *shape, *max_tokens, *cache_tokens, column.as_deref())?;
            }
            SourceTable::Repetition { ngram } => {
                keys.whole("ngram", *ngram, 1..=1000)?;
            }
            SourceTable::Model { .. } | SourceTable::ExactAnswer { .. } | SourceTable::Format {} => {}
        }
        Ok(())
    }

    /// Opens the source: loads models, starts programs.
    pub(super) fn open<'a>(&self, folders: &[PathBuf]) -> Result<Source<'a>> {
        Ok(match &self.source {
            SourceTable::Model { combine, .. } => {
                let models = self.folders(folders).map(RewardModel::load).collect::<Result<_>>()?;
                Source::Model(Ensemble { models, combine: *combine })
            }
            SourceTable::Command { command, timeout_seconds } => {
                Source::Command(Program::start(command, Duration::from_secs_f64(*timeout_seconds))?)
            }
            SourceTable::Http { url, timeout_seconds, retries } => {
                Source::Http(Server::new(url.clone(), Duration::from_secs_f64(*timeout_seconds), *retries))
            }
            SourceTable::ExactAnswer { column } => Source::ExactAnswer(ExactAnswer { column: column.clone() }),
            SourceTable::Regex { pattern } => {
                let pattern = regex::Regex::new(pattern);
                Source::Regex(pattern.map_err(|error| Error::BadRequest(format!("pattern: {error}")))?)
            }
            SourceTable::Length { shape, max_tokens, cache_tokens, column } => {
                let (max_tokens, cache_tokens) = (max_tokens.unwrap_or_default(), cache_tokens.unwrap_or_default());
                match shape {
                    LengthShape::Tokens => Source::Length,
                    LengthShape::SoftOverlong => Source::SoftOverlong { max_tokens, cache_tokens },
                    LengthShape::Cosine => {
                        let column = column.clone().unwrap_or_else(default_column);
                        Source::Cosine { max_tokens, answer: ExactAnswer { column } }
                    }
                }
            }
            SourceTable::Repetition { ngram } => Source::Repetition { ngram: *ngram },
            SourceTable::Format {} => Source::Format,
        })
    }

    /// The folders of a source of models.
    fn folders<'f>(&'f self, folders: &'f [PathBuf]) -> impl Iterator<Item = &'f PathBuf> {
        let is_used = |number: &usize| match &self.source {
            SourceTable::Model { folders: numbers, .. } => numbers.is_empty() || numbers.contains(number),
            _ => false,
        };
        (1..).zip(folders).filter(move |(number, _)| is_used(number)).map(|(_, folder)| folder)
    }
}

/// Checks that the shape of a reward for lengths has its keys and no others.
fn check_length(
    keys: Keys,
    shape: LengthShape,
    max_tokens: Option<usize>,
    cache_tokens: Option<usize>,
    column: Option<&str>,
) -> Result<()> {
    let (max, cache, of_answers) = match shape {
        LengthShape::Tokens => (false, false, false),
        LengthShape::SoftOverlong => (true, true, false),
        LengthShape::Cosine => (true, false, true),
    };
    for (key, given, needed) in [("max_tokens", max_tokens, max), ("cache_tokens", cache_tokens, cache)] {
        match (given, needed) {
            (None, true) => return Err(keys.wrong(key, "missing", "given with this \"shape\"")),
            (Some(number), false) => return Err(keys.wrong(key, &number.to_string(), "left out with this \"shape\"")),
            _ => {}
        }
    }
    if let Some(column) = column.filter(|_| !of_answers) {
        return Err(keys.wrong("column", column, "left out with this \"shape\""));
    }
    if let Some(max) = max_tokens {
        keys.whole("max_tokens", max, 1..=1 << 30)?;
        keys.whole("cache_tokens", cache_tokens.unwrap_or(0), 0..=max as u64)?;
    }
    Ok(())
}

/// Checks that the tables and the folders of `--reward` fit.
pub(super) fn check_folders(tables: &[RewardTable], folders: &[PathBuf]) -> Result<()> {
    let mut used = vec![false; folders.len()];
    for table in tables {
        let SourceTable::Model { folders: numbers, .. } = &table.source else { continue };
        if folders.is_empty() {
            return Err(Error::BadRequest(
                "no reward: give the folder of a reward model with --reward, or other sources in tables [[rewards]]"
                    .to_owned(),
            ));
        }
        if let Some(number) = numbers.iter().find(|&&number| number > folders.len()) {
            let count = folders.len();
            return Err(Error::BadRequest(format!(
                "[[rewards]]: folders has {number}; --reward names {count} folders, so it must be from 1 to {count}"
            )));
        }
        (1..).zip(&mut used).for_each(|(number, used)| *used |= numbers.is_empty() || numbers.contains(&number));
    }
    match used.iter().position(|used| !used) {
        Some(at) => Err(Error::BadRequest(format!(
            "--reward {}: no table [[rewards]] of kind \"model\" uses it; add one, or leave it out",
            folders[at].display()
        ))),
        None => Ok(()),
    }
}
