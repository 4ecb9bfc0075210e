//! Evaluation of models: text loss, minimal pairs, tasks, statistics of replies, confidence intervals and simple baselines.
//!
//! - [`text_loss`], [`continuation_logprobs`]: the loss on text, and the probability of given continuations;
//! - [`probe_scores`], [`pair_scores`]: minimal pairs, optionally with masked words;
//! - [`task_scores`], [`generate_replies`], [`reply_stats`], [`reply_kls`]: generated replies and their statistics;
//! - [`stats`]: confidence intervals; [`baselines`]: simple predictors to compare with.
//!
//! Scores are returned per item, so that [`stats`] can compute intervals and paired comparisons.
//!
//! ```
//! use llm_eval::stats::wilson;
//!
//! let interval = wilson(52, 60); // 52 of 60 items are correct: 86.7 %
//! assert!((interval.low - 0.758).abs() < 0.001 && (interval.high - 0.931).abs() < 0.001);
//! ```
//!
//! This crate does not depend on training. Where to look next: `llm_train::recipes::lifecycle` reports these metrics.
//!
//! A debug build of a program that uses this crate needs `[profile.dev.package."*"]` with `opt-level = 3` in its `Cargo.toml`:
//! Cargo ignores the profiles of a dependency, and tensor code without optimisation is too slow to run models.
//!
//! `examples/compare_models.rs` is an example to copy: two models with confidence intervals.

pub mod baselines;
mod error;
mod probes;
mod replies;
pub mod stats;
mod tasks;
#[cfg(test)]
pub(crate) mod testing;
mod text;

pub use error::Error;
pub use probes::{Pair, pair_scores, probe_accuracy, probe_scores};
pub use replies::{GeneratedReply, ReplyStats, generate_replies, reply_kls, reply_stats};
pub use tasks::{TaskScores, task_scores};
pub use text::{TextLoss, TextWindows, continuation_logprobs, document_loss, text_loss};

/// The result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
