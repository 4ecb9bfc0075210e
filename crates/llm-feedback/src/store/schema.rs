//! Opens a database: the tables, their versions, and files that are something else.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use crate::{Error, Result};

/// `application_id` of a database of this crate: "llmf".
const APPLICATION: i64 = 0x6c6c_6d66;

/// How long a statement waits for another process.
const BUSY: Duration = Duration::from_secs(5);

/// The changes of each version of the tables, oldest first. A database has `user_version` = the number of changes.
///
/// `judgement` is append only: the current view is the rows that no other row supersedes. `item.number` and `judgement.number`
/// are the order of insertion; `lease.taken` counts the leases.
const MIGRATIONS: [&str; 1] = ["
CREATE TABLE item(
  number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, prompt_json TEXT NOT NULL, source TEXT NOT NULL,
  gold_order_json TEXT, created INTEGER NOT NULL);
CREATE TABLE answer(
  id TEXT NOT NULL, item_id TEXT NOT NULL REFERENCES item(id), position INTEGER NOT NULL, text TEXT NOT NULL,
  token_ids_json TEXT, checkpoint TEXT, sampling_json TEXT, seed TEXT, finish TEXT,
  PRIMARY KEY(item_id, id));
CREATE TABLE annotator(
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, token_hash TEXT UNIQUE, role TEXT NOT NULL);
CREATE TABLE lease(
  item_id TEXT NOT NULL REFERENCES item(id), annotator_id INTEGER NOT NULL REFERENCES annotator(id),
  until INTEGER NOT NULL, taken INTEGER NOT NULL, repeat_of TEXT, PRIMARY KEY(item_id, annotator_id));
CREATE INDEX lease_annotator ON lease(annotator_id, taken);
CREATE TABLE judgement(
  number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, item_id TEXT NOT NULL REFERENCES item(id),
  annotator_id INTEGER NOT NULL REFERENCES annotator(id),
  kind TEXT NOT NULL CHECK(kind IN ('rank', 'all_bad', 'skip', 'flag', 'undo')),
  shown_json TEXT NOT NULL, ranks_json TEXT, grades_json TEXT, reason TEXT, started INTEGER NOT NULL,
  submitted INTEGER NOT NULL, ms_visible INTEGER NOT NULL, repeat_of TEXT REFERENCES judgement(id),
  supersedes TEXT UNIQUE REFERENCES judgement(id), guideline_version TEXT);
CREATE INDEX judgement_item ON judgement(item_id, annotator_id);
CREATE INDEX judgement_annotator ON judgement(annotator_id);
CREATE TRIGGER judgement_update BEFORE UPDATE ON judgement BEGIN SELECT RAISE(ABORT, 'judgements are append only'); END;
CREATE TRIGGER judgement_delete BEFORE DELETE ON judgement BEGIN SELECT RAISE(ABORT, 'judgements are append only'); END;
CREATE VIEW current AS SELECT * FROM judgement AS j WHERE j.kind <> 'undo'
  AND NOT EXISTS (SELECT 1 FROM judgement AS later WHERE later.supersedes = j.id);
CREATE TABLE draft(
  item_id TEXT NOT NULL REFERENCES item(id), annotator_id INTEGER NOT NULL REFERENCES annotator(id),
  value_json TEXT NOT NULL, PRIMARY KEY(item_id, annotator_id));
CREATE TABLE event(
  at INTEGER NOT NULL, annotator_id INTEGER REFERENCES annotator(id), item_id TEXT REFERENCES item(id), what TEXT NOT NULL);
"];

/// Opens the database in `path` and brings its tables to the newest version. `create`: a file that does not exist is made.
pub(super) fn open(path: &Path, create: bool) -> Result<Connection> {
    let problem = |problem: String| Error::Open { path: path.to_owned(), problem };
    if path.is_dir() {
        return Err(problem("is a folder; a database is one file".to_owned()));
    }
    if !path.exists() {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match (create, folder.is_dir()) {
            (false, _) => {
                return Err(problem("there is no such file; `collect` and `import` make a database".to_owned()));
            }
            (true, false) => return Err(problem("the folder does not exist; make it first".to_owned())),
            (true, true) => (),
        }
    }
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    flags.set(OpenFlags::SQLITE_OPEN_CREATE, create);
    let explained = |error: rusqlite::Error| match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => problem("is not a database of this program; name another file".to_owned()),
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            problem("cannot be opened for writing; check the permissions of the file and of its folder".to_owned())
        }
        Some(ErrorCode::ReadOnly) => problem("is read-only; the file and its folder must be writable".to_owned()),
        _ => Error::from(error).at(path),
    };
    let mut connection = Connection::open_with_flags(path, flags).map_err(explained)?;
    prepare(&mut connection, path).map_err(|error| match error {
        Error::Sqlite { source, .. } => explained(source),
        other => other,
    })?;
    if connection.is_readonly("main")? {
        return Err(problem("is read-only; the file and its folder must be writable".to_owned()));
    }
    Ok(connection)
}

fn prepare(connection: &mut Connection, path: &Path) -> Result<()> {
    connection.busy_timeout(BUSY)?;
    let known = MIGRATIONS.len() as i64;
    if version(connection, path)? < known {
        // The mode is a property of the file. SQLite does not wait for others here.
        let mut tries = 0;
        while let Err(error) = connection.pragma_update(None, "journal_mode", "wal") {
            tries += 1;
            if error.sqlite_error_code() != Some(ErrorCode::DatabaseBusy) || tries > 100 {
                return Err(error.into());
            }
            std::thread::sleep(BUSY / 100);
        }
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let from = version(&transaction, path)?; // another process may have done it meanwhile
        migrate(&transaction, from)?;
        transaction.commit()?;
    }
    // What is acknowledged is on the disk.
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    Ok(())
}

/// The version of the tables; 0 for a new file.
fn version(connection: &Connection, path: &Path) -> Result<i64> {
    let number = |name: &str| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0));
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let (application, found, known) = (number("application_id")?, number("user_version")?, MIGRATIONS.len() as i64);
    if tables > 0 && application != APPLICATION {
        let problem = "is a database of another program; name another file".to_owned();
        return Err(Error::Open { path: path.to_owned(), problem });
    }
    if found > known {
        return Err(Error::Newer { path: path.to_owned(), found, known });
    }
    Ok(found)
}

fn migrate(transaction: &Transaction, from: i64) -> Result<()> {
    let done = usize::try_from(from).unwrap_or(0);
    for (at, change) in MIGRATIONS.iter().enumerate().skip(done) {
        transaction.execute_batch(change)?;
        transaction.pragma_update(None, "user_version", at as i64 + 1)?;
    }
    Ok(transaction.pragma_update(None, "application_id", APPLICATION)?)
}
