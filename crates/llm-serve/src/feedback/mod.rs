//! The page on which people rank answers, and the arena, where two models answer live.
//!
//! A request passes the limits of every server (`listen`, `body`), `routes` (the name of the host), `app` (who asks), and then
//! a transaction of [`llm_feedback::store::Store`] on a thread of `work`. What is answered with status 200 is on the disk. The page repeats a request until it is
//! answered, and its ids make a repetition harmless.

mod app;
mod arena;
mod assets;
mod blind;
mod options;
mod routes;
mod server;
mod wire;

pub use arena::ArenaModel;
pub use options::FeedbackOptions;
pub use server::FeedbackServer;
