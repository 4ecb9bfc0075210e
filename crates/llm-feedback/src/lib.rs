//! Human preferences: a database of judgements, a simulated annotator, and the agreement between annotators.
//!
//! [`store::Store`] is a database of prompts with answers, of annotators and of their judgements.
//!
//! An [`Annotator`] ranks answers of known utility, with noise (Bradley and Terry 1952; Plackett 1975 for more than two
//! answers) and biases for length and position. [`Annotator::noise_ceiling`] is the highest accuracy that any predictor of such an
//! annotator can reach; compare the accuracy of a reward model with it.
//!
//! ```
//! use llm_feedback::Annotator;
//!
//! let utilities = vec![2.0, 0.5, 1.0];
//! let careful = Annotator { beta: 50., ..Annotator::default() };
//! assert_eq!(careful.rank("question 1", &utilities, &["a", "b", "c"])?, [0, 2, 1]);
//!
//! let noisy = Annotator { beta: 1., ..Annotator::default() };
//! let ceiling = noisy.noise_ceiling(&[(utilities, vec!["a", "b", "c"])]); // about 3 of 4 pairs can be predicted
//! assert!(ceiling > 0.7 && ceiling < 0.8);
//! # Ok::<(), llm_feedback::Error>(())
//! ```
//!
//! This crate does not depend on the model crates. Where to look next: `llm_data::Ranking` is the stored form of a ranking;
//! the reward recipe of `llm-train` trains on rankings.
//!
//! `examples/annotators.rs` is an example to copy: annotators with noise and bias.

mod agreement;
mod annotator;
mod error;
pub mod store;

pub use agreement::agreement;
pub use annotator::{Annotator, preference_probability};
pub use error::Error;

/// The result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
