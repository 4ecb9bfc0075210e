//! Counters and latencies of the engine, for monitoring.

use std::time::Duration;

/// What the engine does and did since its start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EngineStats {
    /// Answers that are being generated.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Pages of the KV cache in use.
    pub pages_used: usize,
    /// Pages of the KV cache.
    pub pages_total: usize,
    /// Prompt tokens that were looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Prompt tokens that were found there.
    pub prefix_hits: u64,
    /// Prompt tokens of the requests that were started.
    pub prompt_tokens: u64,
    /// Generated tokens.
    pub generated_tokens: u64,
    /// Answers that ended by an end token or a stop string.
    pub finished_stop: u64,
    /// Answers that ended by their maximum number of tokens or the context length.
    pub finished_length: u64,
    /// Requests that ended because their receiver was dropped.
    pub cancelled: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Requests that were refused because the queue was full.
    pub refused: u64,
    /// Answers that were stopped to free pages and computed again later.
    pub preemptions: u64,
    /// Tokens that were drafted by speculative decoding.
    pub draft_tokens: u64,
    /// Drafted tokens that were accepted.
    pub accepted_tokens: u64,
    /// Time from submission to the first token, in seconds.
    pub time_to_first_token: Histogram,
    /// Time between the tokens of an answer, in seconds.
    pub inter_token_latency: Histogram,
    /// Time from submission to the end of a request, in seconds.
    pub request_latency: Histogram,
    /// Time in the queue, in seconds.
    pub queue_time: Histogram,
    /// Time from the start of a request to its first token, in seconds.
    pub prefill_time: Histogram,
    /// Time from the first token of a request to its end, in seconds.
    pub decode_time: Histogram,
}

/// A histogram of durations with fixed buckets.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram {
    counts: [u64; Self::BOUNDS.len() + 1],
    sum: f64,
}

impl Histogram {
    /// The upper bounds of the buckets in seconds, inclusive; one more bucket is without a bound.
    pub const BOUNDS: [f64; 16] =
        [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1., 2.5, 5., 10., 30., 60., 120.];

    /// Adds one duration.
    pub(super) fn observe(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = Self::BOUNDS.iter().position(|&bound| seconds <= bound).unwrap_or(Self::BOUNDS.len());
        self.counts[bucket] += 1;
        self.sum += seconds;
    }

    /// The number of durations in each bucket of [`Self::BOUNDS`], then those above all bounds. Not cumulative.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// The sum of all durations, in seconds.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// The number of durations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        let mut histogram = Histogram::default();
        for seconds in [0.0005, 0.001, 0.0011, 1., 500.] {
            histogram.observe(Duration::from_secs_f64(seconds));
        }
        assert_eq!(histogram.counts()[..2], [2, 1]);
        assert_eq!((histogram.counts()[9], histogram.counts()[16], histogram.count()), (1, 1, 5));
        assert!((histogram.sum() - 501.0026).abs() < 1e-9);
    }
}
