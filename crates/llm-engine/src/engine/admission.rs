//! The bounded queue: which requests are refused at once.

use std::time::Duration;

use super::options::EngineOptions;

/// Requests that were submitted and not started.
#[derive(Debug, Default)]
pub(super) struct Queue {
    requests: usize,
    tokens: usize,
    /// Prompt tokens per second of the requests that were started, measured; 0: not known.
    rate: f64,
}

impl Queue {
    /// Counts a request with this number of tokens; if the queue is full, returns when to try again.
    pub fn enter(&mut self, tokens: usize, options: &EngineOptions) -> Result<(), Duration> {
        let full = self.requests >= options.max_queue
            || self.requests > 0 && self.tokens.saturating_add(tokens) > options.max_queued_tokens;
        if full {
            return Err(self.wait());
        }
        self.requests += 1;
        self.tokens += tokens;
        Ok(())
    }

    /// A request was started or dropped.
    pub fn leave(&mut self, tokens: usize) {
        self.requests -= 1;
        self.tokens -= tokens;
    }

    /// The number of requests that wait.
    pub fn len(&self) -> usize {
        self.requests
    }

    /// Adds a measurement: `tokens` left the queue in `time`.
    pub fn observe(&mut self, tokens: usize, time: Duration) {
        let rate = tokens as f64 / time.as_secs_f64().max(1e-6);
        self.rate = if self.rate == 0. { rate } else { 0.9 * self.rate + 0.1 * rate };
    }

    /// About the time until half of the queue is started, from 1 second to a minute.
    fn wait(&self) -> Duration {
        let seconds = if self.rate > 0. { self.tokens as f64 / 2. / self.rate } else { 1. };
        Duration::from_secs_f64(seconds.clamp(1., 60.).ceil())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_refuses_and_says_when_to_try_again() {
        let options = EngineOptions { max_queue: 2, max_queued_tokens: 100, ..EngineOptions::default() };
        let mut queue = Queue::default();
        assert_eq!(queue.enter(500, &options), Ok(()), "a long prompt alone");
        assert_eq!(queue.enter(1, &options), Err(Duration::from_secs(1)), "tokens");
        queue.leave(500);
        assert_eq!((queue.enter(1, &options), queue.enter(99, &options)), (Ok(()), Ok(())));
        queue.observe(10, Duration::from_secs(1));
        assert_eq!(queue.enter(0, &options), Err(Duration::from_secs(5)), "requests: 50 tokens at 10 per second");
        queue.leave(1);
        assert_eq!((queue.len(), queue.enter(1, &options)), (1, Ok(())));
    }
}
