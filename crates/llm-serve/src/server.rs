//! Starts and stops the server of a model.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use llm_engine::Engine;

use crate::app::App;
use crate::limits::Limits;
use crate::listen::{Listening, ServeError};
use crate::options::ServeOptions;
use crate::routes::router;

/// A running server.
#[derive(Debug)]
pub struct Server {
    listening: Listening,
    engine: Engine,
}

impl Server {
    /// Listens on `address` (port 0: any free port) and serves `engine`.
    pub fn start(engine: Engine, address: SocketAddr, options: ServeOptions) -> Result<Self, ServeError> {
        let (limits, served) = (Limits::from(&options), engine.clone());
        let listening = Listening::start(address, limits, |bound, ready| {
            router(Arc::new(App::new(served, options, bound.ip().is_loopback(), ready)))
        })?;
        Ok(Self { listening, engine })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listening.address()
    }

    /// Stops: `/ready` says so, new requests are refused, running ones may take until `deadline`. Blocks the calling thread, which must
    /// not be one of an async runtime.
    pub fn shutdown(self, deadline: Duration) {
        self.listening.stop();
        let engine = self.engine;
        let ended = std::thread::spawn(move || engine.shutdown(deadline));
        // The answers of the requests that ended are still to be sent.
        self.listening.end(deadline + Duration::from_secs(1));
        if ended.join().is_err() {
            tracing::error!("the engine did not shut down");
        }
    }
}
