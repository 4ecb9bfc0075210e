//! What people prefer: a simulated annotator, and how far annotators agree.
//!
//! An [`Annotator`] ranks answers whose true utility is known, with noise (Bradley and Terry 1952; for more than two
//! answers Plackett 1975) and biases that people are known for. [`noise_ceiling`] says how well anybody can foresee
//! such an annotator: the yardstick of a reward model.
//!
//! ```
//! use llm_feedback::{Annotator, noise_ceiling};
//!
//! let utilities = vec![2.0, 0.5, 1.0];
//! let careful = Annotator { beta: 50., ..Annotator::default() };
//! assert_eq!(careful.rank("question 1", &utilities, &["a", "b", "c"])?, [0, 2, 1]);
//!
//! let ceiling = noise_ceiling(1.0, &[utilities]); // a sloppy one can be foreseen three times out of four
//! assert!(ceiling > 0.7 && ceiling < 0.8);
//! # Ok::<(), llm_feedback::Error>(())
//! ```
//!
//! This crate knows nothing of models. Where to look next: `llm_data::Ranking` is the form in which rankings are
//! stored, the reward recipe of `llm-train` learns from them.

mod agreement;
mod annotator;

pub use agreement::agreement;
pub use annotator::{Annotator, noise_ceiling, preference_probability};

/// What can go wrong with rankings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Utilities, texts or orders that do not fit together.
    #[error("{0}")]
    Input(String),
}

/// What every fallible function of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;
