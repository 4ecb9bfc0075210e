//! The error type.

use std::path::PathBuf;

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of this crate. The message says what failed and how to fix it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The requested vocabulary is too small for the special tokens and the smallest tokens of its kind.
    #[error("vocab_size = {asked}: the vocabulary needs at least {least} entries ({what}); raise vocab_size")]
    VocabSize {
        /// The requested size.
        asked: usize,
        /// The minimum size.
        least: usize,
        /// The entries that are always there.
        what: &'static str,
    },

    /// The maximum length of a token is out of range.
    #[error("max_token_length is {asked}; it must be from 2 to 1024 bytes")]
    TokenLength {
        /// The requested length.
        asked: usize,
    },

    /// Training the tokenizer failed.
    #[error("training the tokenizer: {cause}")]
    Train {
        /// The error of the trainer.
        cause: tokenizers::Error,
    },

    /// A folder does not exist.
    #[error("{}: no such folder; give a folder with a tokenizer.json{}", dir.display(), llm_files::hub_hint(dir))]
    NoFolder {
        /// The missing folder.
        dir: PathBuf,
    },

    /// A folder has no `tokenizer.json`.
    #[error("{}: no such file; give a folder with a tokenizer.json, or train a tokenizer and save it there", path.display())]
    Missing {
        /// The missing file.
        path: PathBuf,
    },

    /// A file exists but cannot be read.
    #[error("{}: cannot be read ({}); check that it is a text file and that you have permission", path.display(), llm_files::error_text(cause))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system reported.
        cause: std::io::Error,
    },

    /// The content of a file is invalid.
    #[error("{}: not a valid file: {cause}; download or copy it again", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The error of the parser, with its position.
        cause: tokenizers::Error,
    },

    /// A key of `tokenizer_config.json` has a value of the wrong type.
    #[error("{}: \"{key}\" must be {expected}; correct or remove the key", path.display())]
    ConfigKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// The expected value.
        expected: &'static str,
    },

    /// A file or folder could not be written.
    #[error("{}: cannot be written ({}); check the permissions of the folder", path.display(), llm_files::error_text(cause))]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system reported.
        cause: std::io::Error,
    },

    /// The tokenizer could not be serialized as JSON.
    #[error("writing the tokenizer as JSON: {cause}")]
    Serialize {
        /// The error of the serializer.
        cause: tokenizers::Error,
    },

    /// The tokenizer cannot be converted to or from GGUF without changing its behaviour.
    #[error("tokenizer of a GGUF file: {message}")]
    Gguf {
        /// The key or token, and the problem.
        message: String,
    },

    /// A text could not be encoded.
    #[error("encoding a text of {bytes} bytes: {cause}")]
    Encode {
        /// The length of the text in bytes.
        bytes: usize,
        /// The error of the tokenizer.
        cause: tokenizers::Error,
    },

    /// Ids could not be decoded.
    #[error("decoding {count} ids: {cause}")]
    Decode {
        /// Number of ids.
        count: usize,
        /// The error of the tokenizer.
        cause: tokenizers::Error,
    },

    /// The tokenizer has no chat template.
    #[error(
        "the tokenizer has no chat template; use the folder of a chat model, add \"chat_template\" to its \
         tokenizer_config.json, or call `with_default_chat_template`"
    )]
    NoChatTemplate,

    /// The vocabulary lacks the tokens of the default chat template.
    #[error(
        "the vocabulary has no {}; the default chat template needs them: train the tokenizer with `train_bpe`, or use \
         another chat template", missing.join(", ")
    )]
    RoleTokens {
        /// The missing tokens.
        missing: Vec<&'static str>,
    },

    /// The chat template is invalid, or raised an error for the conversation.
    #[error("chat template: {cause}")]
    Template {
        /// The error of the parser or of the template.
        cause: String,
    },

    /// A text with variables is invalid, or a variable is missing.
    #[error("template: {cause}")]
    TextTemplate {
        /// The error of the parser or of the template.
        cause: String,
    },

    /// A setting of the chat template is wrong.
    #[error("chat template: {message}")]
    TemplateOption {
        /// The setting, and the problem.
        message: String,
    },

    /// A message that is to be continued has no text.
    #[error("messages[{index}] has no text to continue; give it a \"content\"")]
    NothingToContinue {
        /// The index of the message.
        index: usize,
    },

    /// The chat template has no special token at the end of an assistant message.
    #[error(
        "chat template: no special token ends an assistant message, so the end of an answer cannot be detected; add one after \
         the content of the message, such as {{{{ eos_token }}}}"
    )]
    NoEndOfTurn,

    /// A key of a message has a value that it cannot have.
    #[error("\"{key}\" is {value}; it must be {expected}")]
    MessageKey {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// The expected value.
        expected: String,
    },

    /// A role contains the text of a special token.
    #[error(
        "messages[{index}].role = {role:?} contains the text of a special token; use a plain role such as \"user\""
    )]
    Role {
        /// The index of the message.
        index: usize,
        /// Its role.
        role: String,
    },
}

impl Error {
    /// Whether the caller can fix it: a missing or invalid file, a chat template that does not fit, an argument out of range.
    /// Other errors come from the machine, such as a full disk, or from the tokenizer library.
    pub fn is_callers_fault(&self) -> bool {
        match self {
            Self::Read { cause, .. } | Self::Write { cause, .. } => llm_files::is_callers_fault(cause),
            Self::Train { .. } | Self::Serialize { .. } | Self::Encode { .. } | Self::Decode { .. } => false,
            Self::VocabSize { .. }
            | Self::TokenLength { .. }
            | Self::NoFolder { .. }
            | Self::Missing { .. }
            | Self::Parse { .. }
            | Self::ConfigKey { .. }
            | Self::Gguf { .. }
            | Self::NoChatTemplate
            | Self::RoleTokens { .. }
            | Self::Template { .. }
            | Self::TextTemplate { .. }
            | Self::TemplateOption { .. }
            | Self::NothingToContinue { .. }
            | Self::NoEndOfTurn
            | Self::MessageKey { .. }
            | Self::Role { .. } => true,
        }
    }
}
