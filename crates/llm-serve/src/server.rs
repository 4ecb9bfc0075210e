//! Listens, serves connections and shuts down.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use llm_engine::Engine;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::app::App;
use crate::connection::Connection;
use crate::options::ServeOptions;
use crate::routes::router;

/// Threads that serve connections; the model has threads of its own.
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

/// A running server.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    runtime: Option<Runtime>,
    engine: Engine,
    stop: watch::Sender<bool>,
    /// Is closed when all connections have ended.
    open: mpsc::Receiver<()>,
}

impl Server {
    /// Listens on `address` (port 0: any free port) and serves `engine`.
    pub fn start(engine: Engine, address: SocketAddr, options: ServeOptions) -> Result<Self, ServeError> {
        let listener = TcpListener::bind(address).map_err(|cause| ServeError::Listen { address, cause })?;
        let bound = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(THREADS).thread_name("serve").enable_all().build()?;
        let (stop, ready) = watch::channel(true);
        let (opened, open) = mpsc::channel(1);
        let app = Arc::new(App::new(engine.clone(), options, bound.ip().is_loopback(), ready));
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        runtime.spawn(accept(listener, app, opened));
        Ok(Self { address: bound, runtime: Some(runtime), engine, stop, open })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops: `/ready` says so, new requests are refused, running ones may take until `deadline`. Blocks the calling thread, which must
    /// not be one of an async runtime.
    pub fn shutdown(mut self, deadline: Duration) {
        self.stop.send_replace(false);
        let engine = self.engine.clone();
        let Some(runtime) = self.runtime.take() else { return };
        let ended = std::thread::spawn(move || engine.shutdown(deadline));
        // The answers of the requests that ended are still to be sent.
        let all = async { tokio::time::timeout(deadline + Duration::from_secs(1), self.open.recv()).await.is_ok() };
        if !runtime.block_on(all) {
            tracing::warn!("some connections did not end within {} s and are closed", deadline.as_secs_f64());
        }
        if ended.join().is_err() {
            tracing::error!("the engine did not shut down");
        }
        runtime.shutdown_timeout(Duration::from_secs(1));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Accepts connections until the server stops.
async fn accept(listener: tokio::net::TcpListener, app: Arc<App>, opened: mpsc::Sender<()>) {
    let places = Arc::new(Semaphore::new(app.options.max_connections));
    let mut ready = app.ready.clone();
    let routes = router(Arc::clone(&app));
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
        let (app, routes, opened) = (Arc::clone(&app), routes.clone(), opened.clone());
        tokio::spawn(async move {
            serve(stream, &app, routes).await;
            drop((place, opened));
        });
    }
}

/// Serves one connection.
async fn serve(stream: TcpStream, app: &App, routes: axum::Router) {
    // Small chunks of a stream are sent at once.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!("a connection: {error}");
    }
    let io = TokioIo::new(Connection::new(stream, app.options.stall_timeout));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(app.options.header_timeout).half_close(false);
    let connection = builder.serve_connection(io, TowerToHyperService::new(routes));
    let mut connection = std::pin::pin!(connection);
    let mut ready = app.ready.clone();
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
