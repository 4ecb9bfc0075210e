//! Runs that diverge: numbers that are not finite end a run before they are written.

use super::{Learners, OPTIMIZER, Run, checkpoint};
use crate::{Error, Result};

impl Run<'_> {
    /// Returns [`Error::Diverged`] if a metric of `step` (counted from 1) is not finite. Loss and gradients come from the
    /// weights of the previous step, so the checkpoint of that step is removed.
    pub fn check_step(&self, step: u64, metrics: &[(&str, f64)]) -> Result<()> {
        self.writer.poll()?;
        if metrics.iter().any(|(_, value)| !value.is_finite()) {
            self.writer.wait()?;
            checkpoint::discard(&self.dir, step - 1)?;
        }
        self.check_finite(step, metrics)
    }

    /// Returns [`Error::Diverged`] if a metric of `step` (counted from 1) is not finite.
    pub fn check_finite(&self, step: u64, metrics: &[(&str, f64)]) -> Result<()> {
        match metrics.iter().find(|(_, value)| !value.is_finite()) {
            None => Ok(()),
            Some((name, value)) => Err(self.diverged(step, format!("{name} is {value}"), OPTIMIZER)?),
        }
    }

    /// Stops the run if a weight or a moment of a learner is not finite after `step` steps.
    pub fn check_learners(&self, step: u64, learners: &Learners) -> Result<()> {
        for (optimizer, learner) in learners {
            if let Some(what) = learner.not_finite()? {
                return Err(self.diverged(step, what, optimizer)?);
            }
        }
        Ok(())
    }

    /// The error of a run whose numbers are not finite: it names the last checkpoint, which is complete.
    pub(super) fn diverged(&self, step: u64, what: String, optimizer: &'static str) -> Result<Error> {
        self.writer.wait()?;
        let kept = match checkpoint::newest_checkpoint(&self.dir)?.map(|(_, dir)| dir) {
            Some(dir) => dir.display().to_string(),
            None => "none".to_owned(),
        };
        Ok(Error::Diverged { run: self.dir.clone(), step, what, kept, optimizer })
    }
}
