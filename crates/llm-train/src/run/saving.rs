//! When and how a run writes its checkpoints: a copy of the state is made in memory, and another thread writes it.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::JoinHandle;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::{Learners, OPTIMIZER, Plan, Run, checkpoint, metrics, report};
use crate::optim::Learner;
use crate::{Error, Result};

/// The thread that writes a checkpoint, at most one at a time. It is joined when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Writer(RefCell<Option<JoinHandle<Result<()>>>>);

impl Writer {
    /// Runs `work` on another thread, after the work before it has ended without an error.
    fn start(&self, work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
        self.wait()?;
        let thread = std::thread::Builder::new().name("checkpoint".to_owned()).spawn(work);
        *self.0.borrow_mut() = Some(thread.map_err(Error::io("the thread that writes checkpoints"))?);
        Ok(())
    }

    /// Waits until nothing is written, and returns the error of what was written last.
    pub fn wait(&self) -> Result<()> {
        let running = self.0.borrow_mut().take();
        let panicked = || Err(Error::Internal("the thread that writes checkpoints panicked".to_owned()));
        running.map_or(Ok(()), |thread| thread.join().unwrap_or_else(|_| panicked()))
    }

    /// The error of what was written last, if it has ended.
    pub fn poll(&self) -> Result<()> {
        let has_ended = self.0.borrow().as_ref().is_some_and(JoinHandle::is_finished);
        if has_ended { self.wait() } else { Ok(()) }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Err(error) = self.wait() {
            tracing::error!("{error}");
        }
    }
}

impl Run<'_> {
    /// Whether to write a checkpoint after `step` steps.
    pub(super) fn is_due(&self, step: u64) -> bool {
        let Plan { steps, save_every, .. } = self.plan;
        let (history, stop) = (self.history.borrow(), self.stop.load(SeqCst));
        let regular = step == steps || save_every > 0 && step.is_multiple_of(save_every);
        regular || stop || history.kept() == Some(step) || history.stop().is_some()
    }

    /// Writes the checkpoint of `step`; `write` fills its folder. Keeps the last two checkpoints. Returns [`Error::Interrupted`] if
    /// the run was asked to stop, and [`Error::Diverged`], without a checkpoint, if a weight or moment of `learners` is not finite.
    pub fn checkpoint(
        &self,
        step: u64,
        learners: &Learners,
        mut state: Map<String, Value>,
        write: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        self.check_learners(step, learners)?;
        self.metrics.sync()?;
        state.insert("elapsed_s".to_owned(), json!(self.elapsed()));
        checkpoint::write(&self.dir, step, (self.plan.save_every, self.history.borrow().kept()), state, write)?;
        self.report(step)?;
        self.stop_if_asked(step)
    }

    /// [`Self::checkpoint`] of a stage that trains one model, on another thread: copies what is written, and goes on. An error of the
    /// thread is returned at a later step; at the end of the run and on an interruption the checkpoint is complete.
    pub(super) fn checkpoint_in_background(&self, step: u64, learner: &Learner) -> Result<()> {
        let start = Instant::now();
        self.check_learners(step, &[(OPTIMIZER, learner)])?;
        // At most one copy is in memory.
        self.writer.wait()?;
        let (snapshot, log) = (learner.snapshot()?, self.metrics.handle()?);
        let state = Map::from_iter([("elapsed_s".to_owned(), json!(self.elapsed()))]);
        let (dir, write_model, steps) = (self.dir.clone(), Arc::clone(&self.plan.write), self.plan.steps);
        let kept = (self.plan.save_every, self.history.borrow().kept());
        self.writer.start(move || {
            log.sync_all().map_err(Error::io(&dir))?;
            checkpoint::write(&dir, step, kept, state, |to| {
                write_model(&snapshot.model, to)?;
                snapshot.save(&to.join("trainer"))
            })?;
            report::write(&dir, &metrics::lines(&dir)?, step, steps)
        })?;
        tracing::debug!(
            "step {step}: the training waited {:.1} ms for the checkpoint",
            start.elapsed().as_secs_f64() * 1e3
        );
        self.stop_if_asked(step)
    }

    /// Returns [`Error::Interrupted`], when all is written, if the run was asked to stop.
    fn stop_if_asked(&self, step: u64) -> Result<()> {
        if self.stop.load(SeqCst) && step < self.plan.steps && !self.ends_early() {
            self.writer.wait()?;
            let done = format!("after step {step} of {}", self.plan.steps);
            return Err(Error::Interrupted { run: self.dir.clone(), done });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn an_error_of_the_thread_is_returned_once_when_it_has_ended() {
        let (writer, (go, wait)) = (Writer::default(), channel::<()>());
        let failed = || Error::Internal("disk full".to_owned());
        writer
            .start(move || {
                wait.recv().ok();
                Err(failed())
            })
            .unwrap();
        writer.poll().unwrap();
        go.send(()).unwrap();
        let error = loop {
            if let Err(error) = writer.poll() {
                break error;
            }
            std::thread::yield_now();
        };
        assert_eq!(error.to_string(), "disk full");
        writer.wait().unwrap();
        // The next one waits for the one before it, and returns its error instead of starting.
        writer.start(move || Err(failed())).unwrap();
        assert!(writer.start(|| Ok(())).is_err());
        writer.start(|| Ok(())).unwrap();
        writer.wait().unwrap();
    }
}
