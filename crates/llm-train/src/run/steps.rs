//! The frame of a training loop: [`Run::steps`] yields the steps, [`Step::finish`] does everything of a step but the training.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use llm_model::Model;
use serde_json::{Map, Value};

use super::{Learners, Run, Selection};
use crate::Result;
use crate::eval::is_eval_step;
use crate::optim::Learner;

/// The length of a run, and what it does besides training.
pub(crate) struct Plan<'a> {
    /// Total number of steps (PPO: updates).
    pub steps: u64,
    /// Steps between checkpoints; 0: only at the end.
    pub save_every: u64,
    /// The unit of the progress bar, and its number per step.
    pub unit: (&'static str, u64),
    /// The metrics in the progress bar: label, name, decimals.
    pub shown: &'static [(&'static str, &'static str, usize)],
    /// The evaluation; `None`: the stage has none.
    pub evaluation: Option<Evaluation<'a>>,
    /// Writes the model and its tokenizer into a folder.
    pub write: WriteModel,
}

/// Writes a model and its tokenizer into a folder, on any thread.
pub(crate) type WriteModel = Arc<dyn Fn(&Model, &Path) -> Result<()> + Send + Sync>;

/// When and how a run evaluates its model.
pub(crate) struct Evaluation<'a> {
    /// Steps between evaluations, as for [`is_eval_step`].
    pub every: u64,
    /// What is evaluated, for the progress bar, such as `40,960 tokens`.
    pub size: String,
    /// What the stage does with the evaluations.
    pub selection: Option<Selection>,
    /// Evaluates a frozen copy of the model and logs the metrics.
    pub run: Box<EvaluateModel<'a>>,
}

/// Evaluates a model and logs the metrics.
pub(crate) type EvaluateModel<'a> = dyn Fn(Model, &Evaluating) -> Result<()> + 'a;

/// An evaluation that is running.
pub(crate) struct Evaluating<'r, 'a> {
    run: &'r Run<'a>,
    step: u64,
}

impl Evaluating<'_, '_> {
    /// Logs the metrics of the evaluation, and tells the user `summary`.
    pub fn log(&self, metrics: &[(&str, f64)], summary: &str) -> Result<()> {
        self.run.log(self.step, metrics)?;
        tracing::info!("step {} of {}: {summary}{}", self.step, self.run.plan.steps, self.run.pace.get());
        Ok(())
    }

    /// Whether it is the last evaluation of the run.
    pub fn is_last(&self) -> bool {
        self.step == self.run.plan.steps
    }

    /// Writes `samples/step-N.txt`.
    pub fn sample(&self, text: &str) -> Result<()> {
        self.run.sample(self.step, text)
    }

    /// Writes `samples/NAME-step-N.txt`, for a stage that also writes samples of its training.
    pub fn sample_as(&self, name: &str, text: &str) -> Result<()> {
        self.run.sample_as(&format!("{name}-step-{}", self.step), text)
    }
}

/// The speed of a run, as the end of a line of the log.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    /// The metric of the last step.
    tokens_per_second: Option<f64>,
    /// The metric of the last step.
    peak_share: Option<f64>,
    /// Seconds that are left.
    left: Option<f64>,
}

/// The metric of the share of the machine's peak.
pub(crate) const PEAK_SHARE: &str = "peak_share";

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(speed) = self.tokens_per_second {
            write!(f, "; {speed:.0} tokens/s")?;
        }
        if let Some(share) = self.peak_share {
            write!(f, ", {:.0} % of the peak", 100. * share)?;
        }
        match self.left {
            Some(seconds) if seconds >= 5400. => write!(f, ", {:.1} hours left", seconds / 3600.),
            Some(seconds) if seconds >= 90. => write!(f, ", {:.0} minutes left", seconds / 60.),
            Some(seconds) if seconds >= 1. => write!(f, ", {seconds:.0} s left"),
            _ => Ok(()),
        }
    }
}

/// A step of a run. Train, then call [`Self::finish`].
pub(crate) struct Step<'r, 'a> {
    run: &'r Run<'a>,
    /// Counted from 0. Batches, random streams and learning rates depend on it.
    pub index: u64,
}

impl<'a> Run<'a> {
    /// The steps that are left, as long as the evaluations do not end the run early.
    pub fn steps(&self) -> impl Iterator<Item = Step<'_, 'a>> {
        let steps = (self.first..self.plan.steps).take_while(|_| !self.ends_early());
        steps.map(|index| Step { run: self, index })
    }

    /// Whether no step is done yet.
    pub fn is_new(&self) -> bool {
        self.first == 0
    }

    /// Evaluates the model after `done` steps.
    pub fn evaluate(&self, done: u64, learner: &Learner) -> Result<()> {
        let Some(evaluation) = &self.plan.evaluation else { return Ok(()) };
        if done > self.first {
            self.progress(done, &format!("evaluating on {}", evaluation.size));
        }
        (evaluation.run)(learner.averaged().detached()?, &Evaluating { run: self, step: done })?;
        self.report(done)?;
        self.step_ended.set(Instant::now());
        Ok(())
    }
}

impl Step<'_, '_> {
    /// Number of steps done when this one is finished.
    pub fn done(&self) -> u64 {
        self.index + 1
    }

    /// Ends the step of a stage that trains one model: checks the metrics and logs them with `more`, shows the progress, evaluates
    /// and writes a checkpoint if they are due.
    ///
    /// Returns [`crate::Error::Diverged`] if a metric is not finite, and [`crate::Error::Interrupted`], after a checkpoint, if the
    /// run was asked to stop.
    pub fn finish(self, learner: &Learner, metrics: &[(&str, f64)], more: Map<String, Value>) -> Result<()> {
        let (run, done) = (self.run, self.done());
        run.check_step(done, metrics)?;
        self.log(metrics, more)?;
        if run.plan.evaluation.as_ref().is_some_and(|e| is_eval_step(done, e.every, run.plan.steps)) {
            run.evaluate(done, learner)?;
        }
        if run.is_due(done) {
            run.checkpoint_in_background(done, learner)?;
        }
        run.step_ended.set(Instant::now());
        Ok(())
    }

    /// The metrics of the step's number of tokens: itself, and per second, without evaluations and checkpoints.
    pub fn throughput(&self, tokens: usize) -> [(&'static str, f64); 2] {
        let seconds = self.run.step_ended.get().elapsed().as_secs_f64().max(1e-9);
        [("tokens", tokens as f64), ("tokens_per_second", (tokens as f64 / seconds).round())]
    }

    /// The speed after this step.
    fn pace(&self, metrics: &[(&str, f64)]) -> Pace {
        let value = |name: &str| metrics.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        let seconds_per_step = self.run.seconds() / (self.done() - self.run.first) as f64;
        let left = seconds_per_step * self.run.plan.steps.saturating_sub(self.done()) as f64;
        Pace { tokens_per_second: value("tokens_per_second"), peak_share: value(PEAK_SHARE), left: Some(left) }
    }

    /// Logs the metrics of the step and shows the progress.
    pub fn log(&self, metrics: &[(&str, f64)], more: Map<String, Value>) -> Result<()> {
        self.run.log_with(self.done(), metrics, more)?;
        self.run.done.set(self.done());
        self.run.pace.set(self.pace(metrics));
        let value = |name: &str| metrics.iter().find(|(known, _)| *known == name).map_or(f64::NAN, |(_, value)| *value);
        let shown = self.run.plan.shown.iter();
        let parts: Vec<String> =
            shown.map(|&(label, name, decimals)| format!("{label} {:.decimals$}", value(name))).collect();
        self.run.progress(self.done(), &parts.join(", "));
        Ok(())
    }

    /// Writes a checkpoint if one is due: at every `save_every`-th step, at the end (so that the run can be extended), and when the
    /// run was asked to stop. `state` is additional state of the recipe; `write` fills the folder.
    pub fn save(
        self,
        learners: &Learners,
        state: Map<String, Value>,
        write: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        match self.run.is_due(self.done()) {
            true => self.run.checkpoint(self.done(), learners, state, write),
            false => Ok(()),
        }
    }
}
