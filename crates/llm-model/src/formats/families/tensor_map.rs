//! Where a tensor of the decoder is in the files of a family: renamed, transposed, or fused as rows of a larger tensor.

use crate::ModelConfig;

/// The location of a decoder tensor in the files.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TensorMap {
    /// The name of the tensor in the files.
    pub name: String,
    /// Whether the files store the matrix as `(in, out)` (GPT-2).
    pub transposed: bool,
    /// The rows of the file's tensor; none: all rows.
    pub rows: Option<Rows>,
}

/// Rows `start..start + len` of each of `groups` groups of `group_len` rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rows {
    pub groups: usize,
    pub start: usize,
    pub len: usize,
    pub group_len: usize,
}

/// The tensor `name`, unchanged.
pub(crate) fn rename(name: impl Into<String>) -> TensorMap {
    TensorMap { name: name.into(), transposed: false, rows: None }
}

/// The files use the decoder's names.
pub(crate) fn identity(_: &ModelConfig, name: &str) -> TensorMap {
    rename(name)
}
