//! The inference engine: one thread owns the model and answers the requests of any number of callers.

mod admission;
mod answer;
mod handle;
mod options;
mod shared;
mod stats;
mod steps;
mod thread;
mod validate;
mod work;

pub use handle::{Engine, Generation, ModelInfo, Pending, SubmitError};
pub use options::EngineOptions;
pub(crate) use options::free_memory;
pub use shared::Pooling;
pub use stats::{EngineStats, Histogram};
