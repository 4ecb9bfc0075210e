//! Turns a checkpoint and a prompt into text, for one person or for many rows at once.
//!
//! [`generate`] is the engine: a batch of prompts of different lengths, padded on the left, one cache of keys and
//! values, one random stream for each row. [`TextModel`] wraps it for text: prompts by the chat template, streaming,
//! stop strings. The program `llm-infer` is these with arguments.
//!
//! ```
//! use llm_infer::{GenerateOptions, Sampling, generate};
//! use llm_model::{Head, Model, ModelConfig};
//!
//! let config = ModelConfig { vocab_size: 50, hidden_size: 48, num_hidden_layers: 1, ..ModelConfig::default() };
//! let model = Model::init(config, Head::LanguageModel, 1)?.frozen()?;
//! let options = GenerateOptions {
//!     max_new_tokens: 5,
//!     sampling: Sampling { temperature: 0., ..Sampling::default() },
//!     ..GenerateOptions::default()
//! };
//! let replies = generate(&model, &[vec![1, 2, 3], vec![7]], &options, |_row, _id| true)?;
//! assert_eq!(replies.iter().map(Vec::len).collect::<Vec<_>>(), [5, 5]);
//! # Ok::<(), llm_infer::Error>(())
//! ```
//!
//! This crate knows nothing of training. Where to look next: `llm-train` rolls out its policies with [`generate`].

mod bench;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
mod convert;
mod engine;
mod error;
mod gguf;
mod sampler;
mod text;

pub use bench::{InferenceCost, anonymous_memory, bench, peak_memory};
pub use engine::{GenerateOptions, generate, generate_from};
pub use error::Error;
pub use sampler::{Sampling, sample};
pub use text::{Completion, TextModel, TextOptions};

/// What every fallible function of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;
