//! The database of a ranking: prompts with answers, who judges which, and judgements that are never lost.
//!
//! One `SQLite` file ([`Store::open`]), used by any number of threads and processes at a time. Judgements are append only: a
//! correction or an undo is a row that supersedes another one, and [`Store::current`] is the rows that nothing supersedes.

mod annotators;
mod assign;
mod import;
mod items;
mod judgements;
mod lookup;
mod rows;
mod schema;
#[cfg(test)]
mod tests;
mod types;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, Transaction, TransactionBehavior};

use crate::Result;

pub use types::{
    Added, AnnotatorId, AnnotatorInfo, Grade, Grades, Imported, Item, Judged, Judgement, Kind, MAX_ANSWERS, NewAnswer,
    NewItem, Policy, Progress, Ranks, Role, StoredJudgement, Task, digest,
};

/// A handle of a database. Clones use the same connection, one at a time; other handles and processes have their own.
#[derive(Debug, Clone)]
pub struct Store {
    connection: Arc<Mutex<Connection>>,
    path: Arc<PathBuf>,
}

impl Store {
    /// Opens a database, which is made if it does not exist, and brings its tables to the newest version. A file that is something
    /// else, or of a newer version, and a folder that is read-only are errors.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_file(path.as_ref(), true)
    }

    /// [`Self::open`] for a database that must exist.
    pub fn open_existing(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_file(path.as_ref(), false)
    }

    fn open_file(path: &Path, create: bool) -> Result<Self> {
        let connection = schema::open(path, create)?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)), path: Arc::new(path.to_owned()) })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` in one transaction that excludes other writers, and commits if it returns no error.
    fn write<T>(&self, work: impl FnOnce(&Transaction) -> Result<T>) -> Result<T> {
        self.transaction(TransactionBehavior::Immediate, work)
    }

    /// Runs `work` on one state of the database.
    fn read<T>(&self, work: impl FnOnce(&Transaction) -> Result<T>) -> Result<T> {
        self.transaction(TransactionBehavior::Deferred, work)
    }

    fn transaction<T>(&self, behavior: TransactionBehavior, work: impl FnOnce(&Transaction) -> Result<T>) -> Result<T> {
        // A panic in `work` has rolled its transaction back.
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let run = || {
            let transaction = connection.transaction_with_behavior(behavior)?;
            let result = work(&transaction)?;
            transaction.commit()?;
            Ok(result)
        };
        run().map_err(|error: crate::Error| error.at(&self.path))
    }
}

/// The time now, in milliseconds since 1970: the `now` of the functions of [`Store`].
pub fn now() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)
}
