//! Work that would hold up the connections runs on other threads: parsing, templates, tokenising, grammars.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::error::{ApiError, Result};

/// At most two of these jobs run at a time, and a bounded number waits.
#[derive(Debug)]
pub(crate) struct Work {
    permits: Arc<Semaphore>,
    pending: Arc<AtomicUsize>,
    max_pending: usize,
}

/// Counts a job until it is dropped.
struct Pending(Arc<AtomicUsize>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Work {
    pub(crate) fn new(max_pending: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(2)), pending: Arc::default(), max_pending }
    }

    /// Runs a job. If too many wait, the request is refused. A panic is an error of this request alone.
    pub(crate) async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let pending = Pending(Arc::clone(&self.pending));
        if self.pending.fetch_add(1, Ordering::AcqRel) >= self.max_pending {
            return Err(ApiError::busy(Duration::from_secs(1)));
        }
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(ApiError::internal)?;
        let task = tokio::task::spawn_blocking(move || {
            // A request whose client is gone runs to the end of this job, and counts until then.
            let _counted = (permit, pending);
            job()
        });
        task.await.map_err(ApiError::internal)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_job_that_panics_fails_alone_and_too_many_are_refused() {
        let work = Work::new(1);
        let failed = work.run(|| -> Result<()> { panic!("on purpose") }).await.unwrap_err();
        assert_eq!(failed.status.as_u16(), 500);
        let (start, started) = tokio::sync::oneshot::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let first = work.run(move || {
            start.send(()).ok();
            ended.recv().ok();
            Ok(1)
        });
        let second = async {
            started.await.unwrap();
            let refused = work.run(|| Ok(2)).await.unwrap_err();
            end.send(()).unwrap();
            refused.status.as_u16()
        };
        assert_eq!(tokio::join!(first, second), (Ok(1), 429));
        assert_eq!(work.run(|| Ok(3)).await, Ok(3));
    }
}
