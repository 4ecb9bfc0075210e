//! Text to token ids and back.
//!
//! A [`Tokenizer`] is trained on text with [`train_bpe`] or loaded from a folder in Hugging Face's format
//! (`tokenizer.json`, `tokenizer_config.json`). It encodes and decodes text, encodes conversations with the chat template
//! of the folder, and decodes a stream of ids while a model generates them.
//!
//! Invariants:
//! - [`Tokenizer::encode`] never returns a special token: the text `<|end|>` in a user message is encoded as ordinary text and
//!   cannot end the turn. Special tokens come from the chat template, or from the caller by id.
//! - No begin-of-sequence token is added implicitly.
//! - Training on the same text with the same settings gives the same file, byte for byte.
//! - Every fallible function returns the [`Error`] of this crate; its message says how to fix the problem.
//!
//! ```
//! use llm_tokenizer::{ChatMessage, Tokenizer, TrainConfig, train_bpe};
//!
//! let texts = ["the cat sat on the mat", "the dog sat on the log"];
//! let config = TrainConfig { vocab_size: 280, min_frequency: 2 };
//! let tokenizer = train_bpe(&config, texts.iter())?.with_default_chat_template()?;
//!
//! let ids = tokenizer.encode("the cat 🐈")?;
//! assert_eq!(tokenizer.decode(&ids)?, "the cat 🐈");
//!
//! let chat = [ChatMessage::new("user", "who sat?")];
//! assert_eq!(tokenizer.render_chat(&chat, true)?, "<|user|>who sat?<|end|><|assistant|>");
//!
//! let folder = tempfile::tempdir()?;
//! tokenizer.save(folder.path())?;
//! assert_eq!(Tokenizer::load(folder.path())?.encode("the cat 🐈")?, ids);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A debug build of a program that uses this crate needs `[profile.dev.package."*"]` with `opt-level = 3` in its `Cargo.toml`:
//! Cargo ignores the profiles of a dependency, and tokenization without optimisation is slow.
//!
//! `examples/train_tokenizer.rs` is an example to copy: training, a chat template and the loss mask.

mod byte_level;
mod chat;
mod chat_format;
mod chat_template;
mod chat_training;
mod config;
mod end_of_turn;
mod error;
mod fast;
mod fingerprint;
mod folder;
mod gguf;
mod jinja;
mod llama2c;
mod message;
mod rendered;
mod report;
mod sentencepiece;
mod special_tokens;
mod split;
mod stream;
mod text_template;
mod token_bytes;
mod tokenizer;
mod train;
mod validate;

pub use chat_template::TemplateOptions;
pub use chat_training::{Boundary, TrainOn, TrainingExample};
pub use error::{Error, Result};
pub use message::{Chat, ChatMessage, Conversation};
pub use report::TextReport;
pub use special_tokens::ChatFormat;
pub use stream::StreamDecoder;
pub use text_template::TextTemplate;
pub use tokenizer::Tokenizer;
pub use train::{
    Estimate, Kind, LongestPiece, MIN_VOCAB_SIZE, Split, Ties, TrainConfig, TrainReport, TrainSettings, Trainer,
    train_bpe,
};
