//! Options of the engine.

use std::time::Duration;

/// Options of [`crate::Engine::start`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineOptions {
    /// How many requests may wait; more are refused with [`crate::SubmitError::Busy`]. Default 256.
    pub max_queue: usize,
    /// How many prompt tokens the waiting requests may have together. A longer prompt is accepted if nothing waits. Default 262144.
    pub max_queued_tokens: usize,
    /// A request whose events are not received for this long ends. Default 30 seconds.
    pub stall_timeout: Duration,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { max_queue: 256, max_queued_tokens: 1 << 18, stall_timeout: Duration::from_secs(30) }
    }
}
