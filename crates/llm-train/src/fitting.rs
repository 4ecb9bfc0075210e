//! Whether a model, a tokenizer and prepared data fit together: checked by every stage before its folder is made.

use std::path::Path;

use llm_data::TokenDataset;
use llm_model::ModelConfig;
use llm_tokenizer::Tokenizer;

use crate::{Error, Result};

/// What a stage reads as token ids, or shares them with.
#[derive(Debug, Clone, Copy)]
pub enum Ids<'a> {
    /// Rows of `seq_len` tokens of a folder of token shards.
    Shards {
        /// The shards.
        shards: &'a TokenDataset,
        /// Their folder, named in errors.
        dir: &'a Path,
        /// Tokens of a row.
        seq_len: usize,
    },
    /// Another model of the same stage (a teacher, a student, a reward model), which gets the same ids.
    Other {
        /// Its shape.
        config: &'a ModelConfig,
        /// Its tokenizer.
        tokenizer: &'a Tokenizer,
        /// Its folder, named in errors.
        dir: &'a Path,
    },
}

/// Checks that all ids of a stage mean the same to everything in it and are within the models' vocabularies and context
/// lengths.
///
/// `model` and `tokenizer` come with the folder that errors name. Ids that the stage itself encodes with `tokenizer` need no
/// entry in `ids`. The error names the folder and what differs.
pub fn fitting(model: &ModelConfig, tokenizer: (&Tokenizer, &Path), ids: &[Ids]) -> Result<()> {
    let (tokenizer, origin) = tokenizer;
    let rows = ids.iter().filter_map(|ids| match ids {
        Ids::Shards { seq_len, .. } => Some(*seq_len),
        Ids::Other { .. } => None,
    });
    let seq_len = rows.max().unwrap_or(0);
    takes(model, tokenizer, seq_len, origin)?;
    for ids in ids {
        match *ids {
            Ids::Shards { shards, dir, .. } if shards.manifest().tokenizer != tokenizer.fingerprint() => {
                let origin = origin.display();
                return wrong(dir, format!("was prepared with another tokenizer than {origin}; prepare it again"));
            }
            Ids::Shards { .. } => {}
            Ids::Other { config, tokenizer: other, dir } => {
                takes(config, other, seq_len, dir)?;
                if other.fingerprint() != tokenizer.fingerprint() {
                    let origin = origin.display();
                    return wrong(dir, format!("has another tokenizer than {origin}; both models need the same one"));
                }
            }
        }
    }
    Ok(())
}

/// Checks that a model has a row for each id of its tokenizer and positions for `seq_len` tokens.
fn takes(model: &ModelConfig, tokenizer: &Tokenizer, seq_len: usize, dir: &Path) -> Result<()> {
    let (tokens, rows, positions) = (tokenizer.vocab_size(), model.vocab_size, model.max_position_embeddings);
    if tokens > rows {
        let message = "use the model's own tokenizer";
        return wrong(
            dir,
            format!("the tokenizer has {tokens} tokens, the model's \"vocab_size\" is {rows}; {message}"),
        );
    }
    if seq_len > positions {
        let message = format!("\"seq_len\" must be at most the model's \"max_position_embeddings\", {positions}");
        return wrong(dir, format!("{message}; it is {seq_len}"));
    }
    Ok(())
}

fn wrong(path: &Path, message: String) -> Result<()> {
    Err(Error::Input(format!("{}: {message}", path.display())))
}
