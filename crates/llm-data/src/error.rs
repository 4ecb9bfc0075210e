//! The error type.

use std::path::{Path, PathBuf};

/// The place of a record in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// What is counted: `line`, or `row` in a Parquet file.
    pub unit: &'static str,
    /// The number of the line or row, counted from 1.
    pub number: usize,
}

impl Place {
    pub(crate) fn line(path: &Path, number: usize) -> Self {
        Self { path: path.into(), unit: "line", number }
    }

    pub(crate) fn row(path: &Path, number: usize) -> Self {
        Self { path: path.into(), unit: "row", number }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.path.display(), self.unit, self.number)
    }
}

/// An error of this crate. The message names the file, the line and the fix.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {}", path.display(), llm_files::error_text(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A record of a file is invalid.
    #[error("{place}: {message}")]
    Record {
        /// The file, and the line or row.
        place: Place,
        /// What is wrong, and what is expected.
        message: String,
    },
    /// A file or folder cannot be used.
    #[error("{}: {message}", path.display())]
    Unusable {
        /// The file or folder.
        path: PathBuf,
        /// The reason, and the fix.
        message: String,
    },
    /// The names of columns do not fit the file.
    #[error("data.columns: {message}")]
    Columns {
        /// What is wrong.
        message: String,
    },
    /// The separator of documents is empty.
    #[error("the separator of documents is empty; it must have at least one character, such as \"<|endoftext|>\"")]
    EmptySeparator,
    /// More documents would be removed as near duplicates than the limit.
    #[error(
        "near_duplicates would remove {removed} of {documents} documents, a larger share than max_removed = {max}; look at the \
         clusters with --dry-run, then give --max-removed 1, or other bands and rows in the recipe"
    )]
    TooManyDuplicates {
        /// Number of documents that would be removed.
        removed: usize,
        /// Number of all documents.
        documents: usize,
        /// The limit.
        max: f64,
    },
    /// A pattern of this crate is not a regular expression.
    #[error(transparent)]
    Pattern(regex::Error),
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] llm_tokenizer::Error),
    /// All items have the same prompt, so they cannot be split by prompt.
    #[error(
        "a split needs two different prompts, but all {items} items have the same one; give the validation data as a separate file"
    )]
    OnePrompt {
        /// Number of items.
        items: usize,
    },
    /// A dataset is too small for the batches.
    #[error(
        "{}: has {tokens} tokens, too few for {purpose} in batches of {batch_size} x {seq_len}; use more text, or a smaller \
         batch_size or seq_len",
        dir.display()
    )]
    TooFewTokens {
        /// The folder of the dataset.
        dir: PathBuf,
        /// Number of tokens of the dataset.
        tokens: usize,
        /// What the batches are for: training or evaluation.
        purpose: &'static str,
        /// Rows of a batch.
        batch_size: usize,
        /// Tokens of a row.
        seq_len: usize,
    },
    /// The share of the validation split is out of range.
    #[error("the validation share is {share}; it must be greater than 0 and less than 1")]
    ValidationShare {
        /// The share.
        share: f64,
    },
    /// The weights of a mixture of datasets are invalid.
    #[error("the weights of the datasets are {weights:?}; they must be 0 or more, and at least one above 0")]
    Weights {
        /// The weights.
        weights: Vec<f64>,
    },
    /// The tokenizer has no end-of-document token.
    #[error("the tokenizer has no end-of-document token; add \"<|endoftext|>\"")]
    NoEndToken,
}

impl Error {
    /// Whether the caller can fix it: a missing or invalid file, an argument out of range. Other errors come from the machine,
    /// such as a full disk.
    pub fn is_callers_fault(&self) -> bool {
        match self {
            Self::Io { source, .. } => llm_files::is_callers_fault(source),
            Self::Tokenizer(error) => error.is_callers_fault(),
            Self::Pattern(_) => false,
            Self::Record { .. }
            | Self::Unusable { .. }
            | Self::Columns { .. }
            | Self::EmptySeparator
            | Self::TooManyDuplicates { .. }
            | Self::OnePrompt { .. }
            | Self::TooFewTokens { .. }
            | Self::ValidationShare { .. }
            | Self::Weights { .. }
            | Self::NoEndToken => true,
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn unusable(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self::Unusable { path: path.into(), message: message.into() }
    }
}
