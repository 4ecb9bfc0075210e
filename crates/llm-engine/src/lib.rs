//! Text generation with a checkpoint, for one prompt or for a batch.
//!
//! [`generate`] generates token ids for a batch of prompts: one KV cache, one random stream per row. [`generate_batch`] samples several
//! replies to each prompt in the batched steps of the engine, with log-probabilities.
//! [`TextModel`] adds text: the tokenizer, the chat template, streaming and stop strings. The program `llm-infer` is
//! the command line for them. [`Engine`] answers the requests of many callers on a thread of its own, for servers.
//!
//! ```no_run
//! use llm_engine::TextModel;
//!
//! let model = TextModel::open("runs/lifecycle/aligned")?; // or "model.gguf"
//! println!("{}", model.chat("What is the capital of France?")?);
//! # Ok::<(), llm_engine::Error>(())
//! ```
//!
//! ```
//! use llm_engine::{GenerateOptions, Sampling, generate};
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
//! # Ok::<(), llm_engine::Error>(())
//! ```
//!
//! [`attention`] shows what a word looks at, by layer and head, and what ablating heads changes.
//!
//! A debug build of a program that uses this crate needs `[profile.dev.package."*"]` with `opt-level = 3` in its `Cargo.toml`:
//! Cargo ignores the profiles of a dependency, and tensor code without optimisation is too slow to run models.
//!
//! This crate does not know about training. See also: `llm-train` samples its rollouts with [`generate_batch`].
//!
//! `examples/chat.rs` is an example to copy: a streamed reply and the kinds of errors.

pub mod attention;
mod bench;
mod constraint;
mod engine;
mod error;
mod generate;
mod generate_batch;
mod request;
mod sampler;
mod sampling;
mod scheduler;
mod text;

pub use bench::{InferenceCost, anonymous_memory, bench, peak_memory};
pub use constraint::{CompiledConstraint, ConstraintCompiler, ConstraintLimits};
pub use engine::{Engine, EngineOptions, EngineStats, Generation, Histogram, ModelInfo, Pending, Pooling, SubmitError};
pub use error::Error;
pub use generate::{GenerateOptions, generate, generate_from};
pub use generate_batch::{SampledReply, generate_batch};
pub use request::{Constraint, Event, FinishReason, Request, Token, TokenLogprobs, Usage};
pub use sampler::Sampler;
pub use sampling::{SamplerName, SamplerOrder, SamplerPreset, Sampling};
pub use text::{Completion, TextModel, TextOptions};

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
