//! A server of the OpenAI API for a model of this workspace: chat, completions, embeddings, scores, and a chat page. And a server of the
//! ranking page.
//!
//! ```no_run
//! use llm_engine::{Engine, EngineOptions, TextModel};
//! use llm_serve::{ServeOptions, Server};
//!
//! let engine = Engine::start(TextModel::open("runs/lifecycle/aligned")?, EngineOptions::default())?;
//! let server = Server::start(engine, "127.0.0.1:8080".parse()?, ServeOptions::new("aligned"))?;
//! println!("http://{}/v1", server.address());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A request goes through these modules, in this order:
//! - `listen`, `connection`: time-outs, number of connections;
//! - `guard`: the name of the host, the origin, the API key; `body`: size and time;
//! - `routes`: one function for each path; `wire` has the JSON of requests and responses;
//! - `prepare`: everything that is wrong with a request is found here, on threads of `work`;
//! - `answer`: the events of the engine become a response or a stream. Dropping it cancels the request.
//!
//! [`feedback`] is another server: the page on which people rank answers, over a database of `llm_feedback`. It shares `listen`, `guard` and
//! `body` with this one.
//!
//! Texts of requests and answers are never logged.
//!
//! `examples/server.rs` is an example to copy.

mod answer;
mod app;
mod body;
mod connection;
mod error;
pub mod feedback;
mod guard;
mod ids;
mod limits;
mod listen;
mod metrics;
mod options;
mod prepare;
mod routes;
mod server;
mod vocabulary;
mod wire;
mod work;

pub use listen::ServeError;
pub use options::ServeOptions;
pub use server::Server;
