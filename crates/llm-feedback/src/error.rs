//! Errors of annotators, rankings and the store.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting of an annotator is out of range.
    #[error("{key} is {value}; it must be a number from {low} to {high}")]
    Setting {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: f64,
        /// The least value.
        low: f64,
        /// The greatest value.
        high: f64,
    },
    /// The utilities do not match the answers.
    #[error("{utilities} utilities for {answers} answers; each answer needs one finite utility")]
    Utilities {
        /// Number of utilities.
        utilities: usize,
        /// Number of answers.
        answers: usize,
    },
    /// Two rankings cannot be compared.
    #[error("cannot compare the rankings {one:?} and {other:?}: both must rank the same answers, at least two")]
    Rankings {
        /// The first ranking.
        one: Vec<usize>,
        /// The second ranking.
        other: Vec<usize>,
    },
    /// There is no database, or it cannot be opened.
    #[error("{}: {problem}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What is wrong, and the fix.
        problem: String,
    },
    /// The database was written by a newer version of this program.
    #[error("{}: the database has version {found}; this program knows versions up to {known}; use a newer program", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version that this program knows.
        known: i64,
    },
    /// Reading or writing the database failed.
    #[error("{}: {source}", path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// The error of `SQLite`.
        source: rusqlite::Error,
    },
    /// A value in the database is not what this program writes.
    #[error("the database is damaged: {0}")]
    Damaged(String),
    /// An item, an annotator or a judgement that does not exist.
    #[error("there is no {what} \"{id}\" in the database")]
    Unknown {
        /// The kind of the thing.
        what: &'static str,
        /// Its name.
        id: String,
    },
    /// An item cannot be stored.
    #[error("item \"{id}\": {problem}")]
    Item {
        /// The item.
        id: String,
        /// What is wrong.
        problem: String,
    },
    /// A judgement cannot be stored.
    #[error("judgement \"{id}\" of item \"{item}\": {problem}")]
    Judgement {
        /// The judgement.
        id: String,
        /// Its item.
        item: String,
        /// What is wrong.
        problem: String,
    },
    /// An annotator cannot be stored.
    #[error("annotator \"{name}\": {problem}")]
    Annotator {
        /// The name.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A file of data cannot be read or written.
    #[error(transparent)]
    Data(#[from] llm_data::Error),
    /// A record of a file is not in its format.
    #[error("{} line {line}: {problem}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// A value of the policy is out of range.
    #[error("policy: {0}")]
    Policy(String),
}

impl Error {
    /// Whether the caller can fix it.
    pub fn is_callers_fault(&self) -> bool {
        match self {
            Self::Sqlite { .. } | Self::Damaged(_) => false,
            Self::Data(error) => error.is_callers_fault(),
            Self::Setting { .. }
            | Self::Utilities { .. }
            | Self::Rankings { .. }
            | Self::Open { .. }
            | Self::Newer { .. }
            | Self::Unknown { .. }
            | Self::Item { .. }
            | Self::Judgement { .. }
            | Self::Annotator { .. }
            | Self::Record { .. }
            | Self::Policy(_) => true,
        }
    }

    /// Names the file in an error of `SQLite` that does not name it yet.
    pub(crate) fn at(self, file: &std::path::Path) -> Self {
        match self {
            Self::Sqlite { path, source } if path.as_os_str().is_empty() => {
                Self::Sqlite { path: file.to_owned(), source }
            }
            other => other,
        }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(source: rusqlite::Error) -> Self {
        Self::Sqlite { path: PathBuf::new(), source }
    }
}
