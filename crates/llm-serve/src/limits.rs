//! Limits of connections and bodies.

use std::time::Duration;

use crate::options::ServeOptions;

/// Limits that every server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The maximum number of bytes of the body of a request.
    pub(crate) max_body: usize,
    /// The maximum number of open connections; more wait to be accepted.
    pub(crate) max_connections: usize,
    /// A connection without a request, and the header of a request, may take this long.
    pub(crate) header_timeout: Duration,
    /// The body of a request may take this long.
    pub(crate) body_timeout: Duration,
    /// A client that does not receive anything for this long is disconnected.
    pub(crate) stall_timeout: Duration,
}

impl From<&ServeOptions> for Limits {
    fn from(options: &ServeOptions) -> Self {
        Self {
            max_body: options.max_body,
            max_connections: options.max_connections,
            header_timeout: options.header_timeout,
            body_timeout: options.body_timeout,
            stall_timeout: options.stall_timeout,
        }
    }
}
