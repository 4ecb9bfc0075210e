//! GGUF, the model format of llama.cpp: one file with configuration, tokenizer and weights, which can be quantised.
//!
//! [`llm_files::gguf`] reads and writes the container. `architecture.rs` is the table of the GGUF names of keys and tensors
//! per family. `model.rs` converts models with that table; `keys.rs` converts the configuration and `weights.rs` the
//! tensor data.

mod architecture;
mod keys;
mod model;
mod weights;

pub use llm_files::gguf::{GgufFile, Metadata, Value};

pub(super) use weights::deinterleave_rows;

use std::path::Path;

/// Whether a path has the extension `.gguf`.
pub fn is_gguf(path: impl AsRef<Path>) -> bool {
    let path = path.as_ref();
    path.extension().is_some_and(|extension| extension == "gguf")
}
