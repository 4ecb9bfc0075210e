//! Checks that a model, a tokenizer and prepared data match. Every stage calls it before it creates its folder.

use std::path::Path;

use llm_data::TokenDataset;
use llm_model::ModelConfig;
use llm_tokenizer::Tokenizer;

use crate::{Error, Result};

/// Another source or consumer of token ids in a stage.
#[derive(Debug, Clone, Copy)]
pub enum TokenSource<'a> {
    /// Sequences of `seq_len` tokens from a folder of token shards.
    Shards {
        /// The shards.
        shards: &'a TokenDataset,
        /// Their folder, for error messages.
        dir: &'a Path,
        /// Tokens per sequence.
        seq_len: usize,
    },
    /// Another model (teacher, student, reward model) that reads the same token ids.
    Model {
        /// Its configuration.
        config: &'a ModelConfig,
        /// Its tokenizer.
        tokenizer: &'a Tokenizer,
        /// Its folder, for error messages.
        dir: &'a Path,
    },
}

/// Checks that all models and shards of a stage have the same tokenizer, and that token ids and sequence lengths are within the
/// models' vocabularies and context lengths.
///
/// `tokenizer` comes with its folder. `sources` lists the shards and the other models. The error names the folder and the
/// difference.
pub fn check_compatible(model: &ModelConfig, tokenizer: (&Tokenizer, &Path), sources: &[TokenSource]) -> Result<()> {
    let (tokenizer, origin) = tokenizer;
    let lengths = sources.iter().filter_map(|source| match source {
        TokenSource::Shards { seq_len, .. } => Some(*seq_len),
        TokenSource::Model { .. } => None,
    });
    let seq_len = lengths.max().unwrap_or(0);
    check_sizes(model, tokenizer, seq_len, origin)?;
    for source in sources {
        match *source {
            TokenSource::Shards { shards, dir, .. } if shards.manifest().tokenizer != tokenizer.fingerprint() => {
                let origin = origin.display();
                return wrong(dir, format!("was prepared with another tokenizer than {origin}; prepare it again"));
            }
            TokenSource::Shards { shards, dir, .. }
                if Some(shards.manifest().separator_id) != tokenizer.document_end_id() =>
            {
                let (id, origin) = (shards.manifest().separator_id, origin.display());
                let ours = tokenizer.document_end_id().map_or("none".to_owned(), |id| id.to_string());
                let message =
                    format!("its documents end with token {id}, those of {origin} with {ours}; prepare it again");
                return wrong(dir, message);
            }
            TokenSource::Shards { .. } => {}
            TokenSource::Model { config, tokenizer: other, dir } => {
                check_sizes(config, other, seq_len, dir)?;
                if other.fingerprint() != tokenizer.fingerprint() {
                    let origin = origin.display();
                    return wrong(dir, format!("has another tokenizer than {origin}; both models need the same one"));
                }
            }
        }
    }
    Ok(())
}

/// Checks that the model in `dir` can be compared token by token with one that has `tokenizer`, which comes with its folder: each id that
/// both tokenizers have is the same token, and the model has a row for each token. The sizes of the models' vocabularies may differ: they
/// are often padded. `seq_len` is the length of sequences of plain text, 0 without. The error names the first token that differs.
pub(crate) fn check_same_tokens(
    (tokenizer, origin): (&Tokenizer, &Path),
    (config, dir): (&ModelConfig, &Path),
    seq_len: usize,
) -> Result<()> {
    let other = Tokenizer::load(dir)?;
    check_sizes(config, tokenizer, seq_len, dir)?;
    let shared = tokenizer.vocab_size().min(other.vocab_size()) as u32;
    let show = |token: Option<String>| token.map_or("missing".to_owned(), |token| format!("{token:?}"));
    if let Some(id) = (0..shared).find(|&id| tokenizer.token(id) != other.token(id)) {
        let (ours, theirs, origin) = (show(tokenizer.token(id)), show(other.token(id)), origin.display());
        let message = format!(
            "has another tokenizer than {origin}: token {id} is {theirs}, not {ours}; both models need the same one"
        );
        return wrong(dir, message);
    }
    if tokenizer.fingerprint() != other.fingerprint() {
        tracing::warn!(
            "{}: has the tokens of {}, but another tokenizer.json; texts are encoded by that of the latter",
            dir.display(),
            origin.display()
        );
    }
    Ok(())
}

/// Returns an error for a key of the recipe's model table that the tokenizer or the teacher sets: `given` is the recipe's model, `used` the
/// model of the stage. The error names the key (in `table`), its value and what sets it (`by`). A key with the default value
/// or with the right value is accepted.
pub(crate) fn refuse_overwritten(table: &str, given: &ModelConfig, used: &ModelConfig, by: &str) -> Result<()> {
    let default = values(&ModelConfig::default());
    let all = values(given).into_iter().zip(values(used)).zip(default);
    match all.into_iter().find(|((given, used), default)| given != used && given != default) {
        None => Ok(()),
        Some((((key, given), _), _)) => {
            let given = given.map_or("not set".to_owned(), |value| value.to_string());
            Err(Error::BadRequest(format!("{table}.{key} is {given}; {by} sets this key: leave it out")))
        }
    }
}

/// The keys of a model that a stage may set, with their values.
fn values(config: &ModelConfig) -> [(&'static str, Option<u64>); 5] {
    let id = |id: Option<u32>| id.map(u64::from);
    [
        ("vocab_size", Some(config.vocab_size as u64)),
        ("max_position_embeddings", Some(config.max_position_embeddings as u64)),
        ("bos_token_id", id(config.bos_token_id)),
        ("eos_token_id", id(config.eos_token_id)),
        ("pad_token_id", id(config.pad_token_id)),
    ]
}

/// `config` with the default values of the keys that the tokenizer sets.
pub(crate) fn without_token_ids(config: &ModelConfig) -> ModelConfig {
    let ModelConfig { vocab_size, bos_token_id, eos_token_id, pad_token_id, .. } = ModelConfig::default();
    ModelConfig { vocab_size, bos_token_id, eos_token_id, pad_token_id, ..config.clone() }
}

/// Checks that the vocabulary and the context length of a model are large enough.
fn check_sizes(model: &ModelConfig, tokenizer: &Tokenizer, seq_len: usize, dir: &Path) -> Result<()> {
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
    Err(Error::BadRequest(format!("{}: {message}", path.display())))
}
