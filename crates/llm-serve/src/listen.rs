//! Listens on an address, serves connections within limits, and stops.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::connection::Connection;
use crate::limits::Limits;

/// Threads that serve connections; models have threads of their own.
const THREADS: usize = 2;

/// An error of the server.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be used.
    #[error("{address}: cannot listen ({cause}); choose another --host or --port")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system reported.
        cause: std::io::Error,
    },
    /// The system gave no thread or timer.
    #[error("starting the server: {0}")]
    Runtime(#[from] std::io::Error),
}

/// A socket that listens, with the threads that serve it.
#[derive(Debug)]
pub(crate) struct Listening {
    address: SocketAddr,
    runtime: Option<Runtime>,
    stop: watch::Sender<bool>,
    /// Is closed when all connections have ended.
    open: mpsc::Receiver<()>,
}

impl Listening {
    /// Listens on `address` (port 0: any free port). `routes` makes the routes, from the bound address and what turns false when the server
    /// stops.
    pub(crate) fn start(
        address: SocketAddr,
        limits: Limits,
        routes: impl FnOnce(SocketAddr, watch::Receiver<bool>) -> axum::Router,
    ) -> Result<Self, ServeError> {
        let listener = TcpListener::bind(address).map_err(|cause| ServeError::Listen { address, cause })?;
        let bound = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(THREADS).thread_name("serve").enable_all().build()?;
        let (stop, ready) = watch::channel(true);
        let (opened, open) = mpsc::channel(1);
        let routes = routes(bound, ready.clone());
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        runtime.spawn(accept(listener, limits, routes, ready, opened));
        Ok(Self { address: bound, runtime: Some(runtime), stop, open })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts no more connections; those that are open end after their running request.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(false);
    }

    /// Waits until all connections have ended, at most for `deadline`, and ends the threads. It blocks the calling thread.
    pub(crate) fn end(mut self, deadline: Duration) {
        let Some(runtime) = self.runtime.take() else { return };
        let all = async { tokio::time::timeout(deadline, self.open.recv()).await.is_ok() };
        if !runtime.block_on(all) {
            tracing::warn!("some connections did not end within {} s and are closed", deadline.as_secs_f64());
        }
        runtime.shutdown_timeout(Duration::from_secs(1));
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Accepts connections until the server stops.
async fn accept(
    listener: tokio::net::TcpListener,
    limits: Limits,
    routes: axum::Router,
    mut ready: watch::Receiver<bool>,
    opened: mpsc::Sender<()>,
) {
    let places = Arc::new(Semaphore::new(limits.max_connections));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut ready) => return,
        };
        let stream = match stream {
            Ok((stream, _)) => stream,
            Err(error) => {
                // The client has gone, or there are too many open files: that passes.
                tracing::debug!("a connection was not accepted: {error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let (routes, ready, opened) = (routes.clone(), ready.clone(), opened.clone());
        tokio::spawn(async move {
            serve(stream, limits, routes, ready).await;
            drop((place, opened));
        });
    }
}

/// Serves one connection.
async fn serve(stream: TcpStream, limits: Limits, routes: axum::Router, mut ready: watch::Receiver<bool>) {
    // Small chunks of a stream are sent at once.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!("a connection: {error}");
    }
    let io = TokioIo::new(Connection::new(stream, limits.stall_timeout));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout).half_close(false);
    let connection = builder.serve_connection(io, TowerToHyperService::new(routes));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut ready) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!("a connection ended: {error}");
    }
}

/// Waits until the server stops.
async fn stopped(ready: &mut watch::Receiver<bool>) {
    // The sender is gone only if the server is.
    ready.wait_for(|ready| !ready).await.ok();
}
