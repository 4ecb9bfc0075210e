//! GGUF, llama.cpp's file of a model: one file with the shape, the tokenizer and the weights, these also in blocks.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, version 3, little-endian. `file.rs` reads
//! the container and `write.rs` writes it; they know no model. `architecture.rs` is the table of what each family's keys
//! and tensors are called there; `model.rs` goes from one to the other by that table, with `keys.rs` for the shape and
//! `weights.rs` for the numbers.

mod architecture;
mod file;
mod keys;
mod model;
mod weights;
mod write;

pub use file::{GgufFile, Metadata, TensorType, Value};

use std::path::Path;

/// Whether a path is that of a GGUF file, by its name.
pub fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gguf")
}
