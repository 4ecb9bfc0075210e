//! Answers of models for people to judge, and judgements of simulated annotators.
//!
//! [`collect`] samples answers into a database of [`llm_feedback::store`]; [`simulate`] judges the items of one.

mod collect;
mod simulate;
#[cfg(test)]
mod tests;

pub use collect::{CollectOptions, Collected, Contestant, collect};
pub use simulate::{SimulateOptions, WorldUtilities, simulate};
