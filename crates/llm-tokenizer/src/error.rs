//! What can go wrong, said so that the reader knows what to do next.

use std::path::PathBuf;

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a tokenizer could not be trained, read, written or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The vocabulary asked for cannot hold the bytes and the special tokens.
    #[error(
        "vocab_size = {asked}: a byte-level vocabulary needs at least {least} entries (256 bytes and the special tokens); \
         raise vocab_size"
    )]
    VocabSize {
        /// What was asked for.
        asked: usize,
        /// The smallest size that works.
        least: usize,
    },

    /// Learning the merges failed.
    #[error("training the tokenizer: {cause}")]
    Train {
        /// What the trainer reported.
        cause: tokenizers::Error,
    },

    /// A folder has no `tokenizer.json`.
    #[error("{}: no such file; name a folder that holds a tokenizer.json, or train a tokenizer and save it there", path.display())]
    Missing {
        /// The file that was looked for.
        path: PathBuf,
    },

    /// A file is there but cannot be read.
    #[error("{}: cannot be read ({cause}); check that it is a text file you may read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system reported.
        cause: std::io::Error,
    },

    /// A file is not what its name promises.
    #[error("{}: not a valid file of its kind: {cause}; copy it again from where the model came from", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why parsing stopped.
        cause: tokenizers::Error,
    },

    /// A key of `tokenizer_config.json` has a value of the wrong kind.
    #[error("{}: \"{key}\" must be {expected}; correct it, or remove the key", path.display())]
    ConfigKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What it has to be.
        expected: &'static str,
    },

    /// A file or folder could not be written.
    #[error("{}: cannot be written ({cause}); check that the folder exists, is yours, and has space left", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system reported.
        cause: std::io::Error,
    },

    /// The tokenizer could not be turned into JSON.
    #[error("writing the tokenizer as JSON: {cause}")]
    Serialize {
        /// What the serializer reported.
        cause: tokenizers::Error,
    },

    /// The tokenizer cannot be written into a GGUF file, or not be read from one, and mean the same.
    #[error("tokenizer of a GGUF file: {message}")]
    Gguf {
        /// The key or token, and what is wrong with it.
        message: String,
    },

    /// A text could not be turned into ids.
    #[error("encoding a text of {bytes} bytes: {cause}")]
    Encode {
        /// The length of the text.
        bytes: usize,
        /// What the tokenizer reported.
        cause: tokenizers::Error,
    },

    /// Ids could not be turned into text.
    #[error("decoding {count} ids: {cause}")]
    Decode {
        /// How many ids there were.
        count: usize,
        /// What the tokenizer reported.
        cause: tokenizers::Error,
    },

    /// A later id changed text that the stream had already given out.
    #[error(
        "streaming: id {id} changes text that was already given out; this tokenizer's decoder cannot stream, collect the \
         ids and call `decode`"
    )]
    Stream {
        /// The id that was pushed.
        id: u32,
    },

    /// A conversation was given to a tokenizer without a chat template.
    #[error(
        "the tokenizer has no chat template; use a chat model's folder, add \"chat_template\" to its \
         tokenizer_config.json, or call `with_default_chat_template`"
    )]
    NoChatTemplate,

    /// The vocabulary lacks the tokens of the default chat template.
    #[error(
        "the vocabulary has no {}; the default chat template needs them: train the tokenizer with `train_bpe`, or give it a \
         chat template of its own", missing.join(", ")
    )]
    RoleTokens {
        /// The tokens that are missing.
        missing: Vec<&'static str>,
    },

    /// The chat template is not valid, or refused the conversation.
    #[error("chat template: {cause}")]
    Template {
        /// What the template, or its parser, said.
        cause: String,
    },

    /// No special token ends the assistant's turn in the chat template.
    #[error(
        "chat template: no special token ends the assistant's turn, so nothing could tell that an answer is over; write one \
         after the message's content, such as {{{{ eos_token }}}}"
    )]
    NoEndOfTurn,

    /// A role's name holds the text of a special token.
    #[error(
        "messages[{index}].role = {role:?} contains the text of a special token; use a plain role such as \"user\""
    )]
    Role {
        /// Which message.
        index: usize,
        /// Its role.
        role: String,
    },

    /// The template does not render a conversation's beginning as the beginning of the conversation.
    #[error(
        "messages[{index}]: what the chat template writes up to this assistant message is not the beginning of what it \
         writes for the whole conversation, so the assistant's part cannot be told apart; use a chat template that does not \
         change earlier messages, or train on one turn at a time"
    )]
    NotPrefix {
        /// Which message.
        index: usize,
    },
}
