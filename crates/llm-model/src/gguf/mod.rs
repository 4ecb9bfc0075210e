//! GGUF, the model format of llama.cpp: one file with configuration, tokenizer and weights, which can be quantised.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, version 3, little-endian. `file.rs` reads the
//! container and `write.rs` writes it; neither depends on models. `architecture.rs` is the table of the GGUF names of keys
//! and tensors per family. `model.rs` converts models with that table; `keys.rs` converts the configuration and
//! `weights.rs` the tensor data.

mod architecture;
mod file;
mod keys;
mod model;
mod weights;
mod write;

pub use file::{GgufFile, Metadata, Value};

use std::path::Path;

/// Whether a path has the extension `.gguf`.
pub fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gguf")
}
