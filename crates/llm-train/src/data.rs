//! The table `[data]` of the recipes: how data files are read.

use std::collections::BTreeMap;
use std::path::PathBuf;

use llm_data::{Packing, ReadOptions};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{Error, Result};

/// How the data files of a stage are read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataOptions {
    /// Whether a row that cannot be read is an error. Otherwise it is left out, with a warning that names its line.
    pub strict: bool,
    /// What happens to examples of more than `max_length` tokens.
    pub too_long: TooLong,
    /// Weights of the files of `--data`, in their order: each row is used so many times per pass; a fraction is the share of the rows
    /// that is used once more, chosen by the seed. Empty: 1 for each file.
    pub weights: Vec<f64>,
    /// Columns that are not read, even if they would change what is trained on.
    pub ignored_columns: Vec<String>,
    /// The files' names of columns, by the name that the readers know: `prompt = "question_text"`. `role` and `content` are the keys of
    /// messages.
    pub columns: BTreeMap<String, String>,
}

/// How the token shards of pre-training are used.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShardOptions {
    /// Shares of the folders of `--data` in the tokens that are trained on, in their order; they need not add up to 1. Empty: each has
    /// the share of its tokens, so that all are used equally often.
    pub weights: Vec<f64>,
    /// Whether a token attends only to its own document, with positions counted from the start of the document or of the row.
    pub isolate_documents: bool,
    /// How documents become rows: `cut`: the documents in their order, joined by separators, are cut every `seq_len` tokens. `best_fit`: each
    /// row consists of whole documents, as many as fit; only a document longer than a row is cut, and what is left of a row is padding.
    pub packing: Packing,
}

/// What happens to examples that are too long.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TooLong {
    /// They are left out and counted.
    #[default]
    Drop,
    /// Their end is cut off. An example without a trained token is still left out.
    Cut,
}

impl DataOptions {
    /// The options of the readers.
    pub(crate) fn read_options(&self) -> ReadOptions {
        ReadOptions {
            columns: self.columns.clone(),
            ignored_columns: self.ignored_columns.clone(),
            strict: self.strict,
            ..ReadOptions::default()
        }
    }

    /// Checks the weights against the number of files.
    pub(crate) fn check_files(&self, files: usize) -> Result<()> {
        check_number(&self.weights, files)
    }
}

impl ShardOptions {
    /// The share of each dataset with these numbers of tokens, not normalised.
    pub(crate) fn shares(&self, tokens: &[usize]) -> Result<Vec<f64>> {
        check_number(&self.weights, tokens.len())?;
        match self.weights.is_empty() {
            true => Ok(tokens.iter().map(|&tokens| tokens as f64).collect()),
            false => Ok(self.weights.clone()),
        }
    }
}

/// Returns an error unless there is a weight for each file, or none at all.
fn check_number(weights: &[f64], files: usize) -> Result<()> {
    if weights.is_empty() || weights.len() == files {
        return Ok(());
    }
    Err(Error::BadRequest(format!(
        "data.weights has {} numbers for {files} files of --data; it must have one for each, or be empty",
        weights.len()
    )))
}

/// Reads a list of paths, or one path.
pub(crate) fn one_or_several<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Paths {
        One(PathBuf),
        Several(Vec<PathBuf>),
    }
    Ok(match Paths::deserialize(deserializer)? {
        Paths::One(path) => vec![path],
        Paths::Several(paths) => paths,
    })
}
