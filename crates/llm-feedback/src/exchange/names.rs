//! Names of items, answers and judgements that come from a file without names.

use std::path::Path;

use crate::store::{MAX_ANSWERS, digest};
use crate::{Error, Result};

/// The name of a record: that of the file with the number of the record.
pub(super) fn item_id(path: &Path, number: usize) -> String {
    let stem = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{}-{number:07}", stem.split('.').next().unwrap_or_default())
}

/// The name of an answer of an item. It does not tell its place.
pub(super) fn answer_id(item: &str, index: usize) -> String {
    digest(&[item, &index.to_string()])[..8].to_owned()
}

/// An error in a record.
pub(super) fn wrong(path: &Path, line: usize, problem: impl std::fmt::Display) -> Error {
    Error::Record { path: path.to_owned(), line, problem: problem.to_string() }
}

/// Checks the number of answers of a record.
pub(super) fn check_count(path: &Path, line: usize, answers: usize) -> Result<()> {
    match (1..=MAX_ANSWERS).contains(&answers) {
        true => Ok(()),
        false => Err(wrong(path, line, format!("has {answers} answers; it must have 1 to {MAX_ANSWERS}"))),
    }
}
