//! Annotators and their tokens.

use rusqlite::{OptionalExtension, Transaction, params};
use sha2::{Digest, Sha256};

use super::types::{AnnotatorId, AnnotatorInfo, Role, hex};
use super::{Store, now, rows};
use crate::{Error, Result};

impl Store {
    /// The person with this name, who is added without a token if new.
    pub fn annotator(&self, name: &str) -> Result<AnnotatorId> {
        self.annotator_as(name, Role::Person)
    }

    /// The annotator with this name and role, who is added without a token if new. An annotator with the name and another role is
    /// an error.
    pub fn annotator_as(&self, name: &str, role: Role) -> Result<AnnotatorId> {
        self.write(|transaction| match find(transaction, name)? {
            None => add(transaction, name, role, None),
            Some(found) if found.role == role => Ok(found.id),
            Some(found) => {
                let problem = format!("is {}; use another name", rows::to_json(&found.role)?);
                Err(Error::Annotator { name: name.to_owned(), problem })
            }
        })
    }

    /// Adds a person with a token. The database has the hash of the token only. A name that exists with a token is an error
    /// ([`Self::renew_token`]).
    pub fn add_annotator(&self, name: &str) -> Result<(AnnotatorId, String)> {
        self.write(|transaction| match find(transaction, name)? {
            Some(found) if found.has_token => {
                let problem = "exists and has a token; use another name, or make a new token".to_owned();
                Err(Error::Annotator { name: name.to_owned(), problem })
            }
            Some(found) => Ok((found.id, set_token(transaction, found.id)?)),
            None => {
                let id = add(transaction, name, Role::Person, None)?;
                Ok((id, set_token(transaction, id)?))
            }
        })
    }

    /// A new token for an annotator; the old one is not valid any more.
    pub fn renew_token(&self, name: &str) -> Result<String> {
        self.write(|transaction| match find(transaction, name)? {
            Some(found) => set_token(transaction, found.id),
            None => Err(Error::Unknown { what: "annotator", id: name.to_owned() }),
        })
    }

    /// The annotator with this token.
    pub fn authenticate(&self, token: &str) -> Result<Option<AnnotatorInfo>> {
        self.read(|transaction| {
            let query = "SELECT id, name, role, 1 FROM annotator WHERE token_hash = ?1";
            // The hash is looked up and not the token, so the time of the search says nothing about it.
            Ok(transaction.query_row(query, [hash_of(token)], rows::annotator).optional()?)
        })
    }

    /// All annotators, in the order in which they were added.
    pub fn annotators(&self) -> Result<Vec<AnnotatorInfo>> {
        self.read(|transaction| {
            let mut statement =
                transaction.prepare("SELECT id, name, role, token_hash IS NOT NULL FROM annotator ORDER BY id")?;
            let all = statement.query_map([], rows::annotator)?;
            Ok(all.collect::<Result<_, _>>()?)
        })
    }

    /// Records what happened: a key, a change of focus, a refusal.
    pub fn log_event(&self, annotator: Option<AnnotatorId>, item: Option<&str>, what: &str) -> Result<()> {
        self.write(|transaction| {
            let query = "INSERT INTO event(at, annotator_id, item_id, what) VALUES (?1, ?2, ?3, ?4)";
            transaction.execute(query, params![now(), annotator.map(|id| id.0), item, what])?;
            Ok(())
        })
    }

    /// The events `what` of each item, in the order in which they were recorded.
    pub fn events(&self) -> Result<Vec<(Option<String>, String)>> {
        self.read(|transaction| {
            let mut statement = transaction.prepare("SELECT item_id, what FROM event ORDER BY rowid")?;
            let all = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(all.collect::<Result<_, _>>()?)
        })
    }
}

fn find(transaction: &Transaction, name: &str) -> Result<Option<AnnotatorInfo>> {
    let query = "SELECT id, name, role, token_hash IS NOT NULL FROM annotator WHERE name = ?1";
    Ok(transaction.query_row(query, [name], rows::annotator).optional()?)
}

fn add(transaction: &Transaction, name: &str, role: Role, token_hash: Option<String>) -> Result<AnnotatorId> {
    if name.trim().is_empty() || name.chars().count() > 100 || name.chars().any(char::is_control) {
        let problem = "a name has 1 to 100 characters and no line break".to_owned();
        return Err(Error::Annotator { name: name.to_owned(), problem });
    }
    let query = "INSERT INTO annotator(name, token_hash, role) VALUES (?1, ?2, ?3)";
    transaction.execute(query, params![name, token_hash, rows::role_name(role)])?;
    Ok(AnnotatorId(transaction.last_insert_rowid()))
}

/// Makes a token of 32 random bytes and stores its hash.
fn set_token(transaction: &Transaction, id: AnnotatorId) -> Result<String> {
    // SQLite's generator, a ChaCha20 stream with a seed from the operating system.
    let bytes: Vec<u8> = transaction.query_row("SELECT randomblob(32)", [], |row| row.get(0))?;
    let token = hex(&bytes);
    transaction.execute("UPDATE annotator SET token_hash = ?2 WHERE id = ?1", params![id.0, hash_of(&token)])?;
    Ok(token)
}

fn hash_of(token: &str) -> String {
    hex(&Sha256::digest(token))
}
