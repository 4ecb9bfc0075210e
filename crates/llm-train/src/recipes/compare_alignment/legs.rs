//! A training run in legs: after each, the model is measured.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use candle_core::Device;

use crate::run::{Event, RunOptions, has_begun, is_intact, newest_checkpoint};
use crate::{Error, Result};

/// The shares of the updates after which a model is measured.
const SHARES: [f64; 5] = [0.0625, 0.125, 0.25, 0.5, 1.];

/// A run that stops after each leg with a checkpoint and is resumed. It ends in the same bytes as one without legs.
pub(super) struct Legs<'a> {
    /// The folder of the run.
    pub run: &'a Path,
    /// The number of its steps; without it there is one leg.
    pub steps: Option<u64>,
    pub device: &'a Device,
    pub stop: &'a AtomicBool,
}

impl Legs<'_> {
    /// Runs the legs from number `first` on. `measure` gets the folder of the model after each.
    pub fn run(
        &self,
        first: usize,
        observer: &mut dyn FnMut(Event),
        stage: impl Fn(RunOptions) -> Result<()>,
        mut measure: impl FnMut(&Path) -> Result<()>,
    ) -> Result<()> {
        for end in self.ends().into_iter().skip(first) {
            match end {
                Some(end) => measure(&self.until(end, observer, &stage)?)?,
                None => {
                    if !is_intact(self.run)? {
                        stage(RunOptions::of_stage(self.run, self.device, observer, self.stop))?;
                    }
                    measure(self.run)?;
                }
            }
        }
        Ok(())
    }

    /// The number of steps after each leg; none for the last one, which ends the run.
    fn ends(&self) -> Vec<Option<u64>> {
        let steps = self.steps.unwrap_or(0);
        let mut ends: Vec<Option<u64>> =
            SHARES.iter().map(|share| Some((share * steps as f64).round() as u64)).collect();
        ends.retain(|end| end.is_some_and(|end| 0 < end && end < steps));
        ends.dedup();
        ends.push(None);
        ends
    }

    /// Runs until `end` steps are done; returns the folder of the checkpoint.
    fn until(
        &self,
        end: u64,
        observer: &mut dyn FnMut(Event),
        stage: &impl Fn(RunOptions) -> Result<()>,
    ) -> Result<std::path::PathBuf> {
        let reached = || Ok::<_, Error>(newest_checkpoint(self.run)?.filter(|(step, _)| *step == end));
        if let Some((_, dir)) = reached()? {
            return Ok(dir);
        }
        let halt = AtomicBool::new(self.stop.load(SeqCst));
        let mut watch = |event: Event| {
            let is_end = matches!(event, Event::Progress { done, .. } if done >= end);
            if is_end || self.stop.load(SeqCst) {
                halt.store(true, SeqCst);
            }
            observer(event);
        };
        let options =
            RunOptions { resume: has_begun(self.run), device: self.device.clone(), observer: &mut watch, stop: &halt };
        match stage(options) {
            Err(Error::Interrupted { run, done }) => match reached()? {
                Some((_, dir)) if !self.stop.load(SeqCst) => Ok(dir),
                _ => Err(Error::Interrupted { run, done }),
            },
            Err(error) => Err(error),
            Ok(()) => Err(Error::Internal(format!("{}: ended before step {end}", self.run.display()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::NEVER;

    #[test]
    fn the_last_leg_ends_the_run() {
        let ends = |steps| Legs { run: Path::new("run"), steps, device: &Device::Cpu, stop: &NEVER }.ends();
        assert_eq!(ends(Some(80)), [Some(5), Some(10), Some(20), Some(40), None]);
        assert_eq!(ends(Some(3)), [Some(1), Some(2), None]);
        assert_eq!(ends(Some(1)), [None]);
        assert_eq!(ends(None), [None]);
    }
}
