//! Options of the server.

use std::time::Duration;

/// Options of [`crate::Server::start`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeOptions {
    /// The name of the base model in requests and answers.
    pub name: String,
    /// A request must have one of these keys in `Authorization: Bearer`; none: everyone may ask.
    pub api_keys: Vec<String>,
    /// Names in the header `Host` that are accepted besides loopback names, while the server listens on a loopback address. So no
    /// page of another site can reach it under a name of its own (DNS rebinding).
    pub hosts: Vec<String>,
    /// The default and the maximum of the number of tokens of an answer; none: the rest of the context.
    pub max_new_tokens: Option<usize>,
    /// The maximum number of bytes of the body of a request. Default 8 MiB.
    pub max_body: usize,
    /// The maximum number of open connections; more wait to be accepted. Default 1024.
    pub max_connections: usize,
    /// How many requests may wait to be read and tokenised. Default 64.
    pub max_pending: usize,
    /// A connection without a request, and the header of a request, may take this long. Default 30 seconds.
    pub header_timeout: Duration,
    /// The body of a request may take this long. Default 30 seconds.
    pub body_timeout: Duration,
    /// A client that does not receive anything for this long is disconnected. Default 30 seconds.
    pub stall_timeout: Duration,
    /// A stream without text sends a comment after this time. Default 10 seconds.
    pub keep_alive: Duration,
}

impl ServeOptions {
    /// The defaults, for a base model of this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            api_keys: Vec::new(),
            hosts: Vec::new(),
            max_new_tokens: None,
            max_body: 8 << 20,
            max_connections: 1024,
            max_pending: 64,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(10),
        }
    }
}
