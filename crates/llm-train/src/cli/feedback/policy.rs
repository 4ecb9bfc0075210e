//! Options that say how items are given out.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use llm_feedback::store::Policy;

use crate::Error;

/// Options of the commands that give items to annotators.
#[derive(Debug, Args)]
pub(in crate::cli) struct PolicyOptions {
    /// How many annotators judge each item
    #[arg(long, default_value_t = 1, value_name = "N")]
    overlap: u32,
    /// One of N items is a gold item, if there are any; 0: none
    #[arg(long, default_value_t = 20, value_name = "N")]
    gold_every: u32,
    /// After N items one of the annotator's own items is shown again; 0: never
    #[arg(long, default_value_t = 30, value_name = "N")]
    repeat_every: u32,
    /// How long an item is reserved for the annotator who sees it, in minutes
    #[arg(long, default_value_t = 10., value_name = "MINUTES")]
    lease: f64,
    /// Text file with the guideline for annotators
    #[arg(long, value_name = "FILE")]
    guideline: Option<PathBuf>,
    /// Seed of the order of the answers on the screen
    #[arg(long, default_value_t = 42, value_name = "N")]
    order_seed: u64,
}

impl PolicyOptions {
    /// The policy.
    pub(super) fn policy(&self) -> Result<Policy, Error> {
        let guideline = match &self.guideline {
            None => String::new(),
            Some(path) => std::fs::read_to_string(path).map_err(Error::io(path))?,
        };
        if !(0.001..=1440.).contains(&self.lease) {
            return Err(Error::BadRequest(format!("--lease is {}; it must be from 0.001 to 1440 minutes", self.lease)));
        }
        let policy = Policy {
            overlap: self.overlap,
            gold_every: self.gold_every,
            repeat_every: self.repeat_every,
            lease: Duration::from_secs_f64(60. * self.lease),
            seed: self.order_seed,
            guideline,
        };
        policy.validate()?;
        Ok(policy)
    }
}
