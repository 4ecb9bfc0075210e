//! The GGUF container of llama.cpp: metadata, then tensors.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, version 3, little-endian.

mod read;
mod write;

pub use read::{GgufFile, GgufTensor, Metadata, Value, file_type};
pub use write::{PendingTensor, write};
