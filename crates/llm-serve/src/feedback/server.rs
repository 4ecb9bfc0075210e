//! Starts and stops the server of the ranking page or the arena.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use llm_feedback::store::Store;

use super::app::{App, LIMITS};
use super::arena::{self, ArenaModel};
use super::options::FeedbackOptions;
use super::routes::{ranking, with_shared};
use crate::listen::{Listening, ServeError};

/// A running server of the ranking page or the arena.
///
/// ```no_run
/// use llm_feedback::store::Store;
/// use llm_serve::feedback::{FeedbackOptions, FeedbackServer};
///
/// let store = Store::open("votes.sqlite")?;
/// let server = FeedbackServer::start(store, "127.0.0.1:8090".parse()?, FeedbackOptions::default())?;
/// println!("http://{}/", server.address());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct FeedbackServer {
    listening: Listening,
}

impl FeedbackServer {
    /// Listens on `address` (port 0: any free port) and serves the items of `store`.
    pub fn start(store: Store, address: SocketAddr, options: FeedbackOptions) -> Result<Self, ServeError> {
        Self::listen(store, address, options, |app| with_shared(ranking(), app))
    }

    /// [`Self::start`] with the arena in place of the ranking page: both models answer the prompts of a person, who does not know which
    /// is which and votes. Prompts, answers and votes are items and judgements of `store`.
    pub fn start_arena(
        store: Store,
        models: [ArenaModel; 2],
        address: SocketAddr,
        options: FeedbackOptions,
    ) -> Result<Self, ServeError> {
        Self::listen(store, address, options, |app| with_shared(arena::routes(models), app))
    }

    fn listen(
        store: Store,
        address: SocketAddr,
        options: FeedbackOptions,
        routes: impl FnOnce(Arc<App>) -> Router,
    ) -> Result<Self, ServeError> {
        let listening = Listening::start(address, LIMITS, |bound, _| {
            routes(Arc::new(App::new(store, options, bound.ip().is_loopback())))
        })?;
        Ok(Self { listening })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listening.address()
    }

    /// Stops; requests that run may take until `deadline`. It blocks the calling thread, which must not be one of an async runtime.
    pub fn shutdown(self, deadline: Duration) {
        self.listening.stop();
        self.listening.end(deadline);
    }
}
