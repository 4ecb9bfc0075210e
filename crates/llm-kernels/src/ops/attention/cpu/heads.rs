//! The tensors of an attention call, read and written by head. The tensors of a ragged batch are concatenated sequences.

use std::ops::Range;

use candle_core::Layout;

use crate::cpu::gemm::Matrix;
use crate::cpu::uninit::HeadWriter;
use crate::ops::attention::Dims;
use crate::ops::rotary::RotaryTable;

/// A tensor `(b, t, h, d)` with a contiguous last dimension, read by head.
#[derive(Clone, Copy)]
pub(crate) struct Heads<'a, T = f32> {
    data: &'a [T],
    stride: [usize; 3],
    cu_seqlens: Option<&'a [u32]>,
    d: usize,
}

impl<'a, T: Copy> Heads<'a, T> {
    /// `stride`: elements from one sequence, token and head to the next.
    pub fn new(data: &'a [T], stride: [usize; 3], d: usize) -> Self {
        Self { data, stride, cu_seqlens: None, d }
    }

    /// The same tensor as the concatenated sequences of a ragged batch, if there are `cu_seqlens`.
    pub fn ragged(self, cu_seqlens: Option<&'a [u32]>) -> Self {
        Self { cu_seqlens, ..self }
    }

    /// The index of row `t` of head `h` of sequence `b`.
    fn start(&self, b: usize, t: usize, h: usize) -> usize {
        let sequence = self.cu_seqlens.map_or(b * self.stride[0], |starts| starts[b] as usize * self.stride[1]);
        sequence + t * self.stride[1] + h * self.stride[2]
    }

    pub fn of(data: &'a [T], layout: &Layout, d: usize) -> Self {
        let stride = layout.stride();
        Self::new(&data[layout.start_offset()..], [stride[0], stride[1], stride[2]], d)
    }

    pub fn row(&self, b: usize, t: usize, h: usize) -> &'a [T] {
        let start = self.start(b, t, h);
        &self.data[start..start + self.d]
    }

    /// Rows `rows` of head `h` of sequence `b`: `(rows, d)`.
    pub fn block(&self, b: usize, rows: Range<usize>, h: usize) -> Matrix<'a, T> {
        Matrix::with_stride(&self.data[self.start(b, rows.start, h)..], rows.len(), self.d, self.stride[1])
    }
}

/// The gradients of one key/value head of one sequence and of its query heads.
pub(crate) struct GroupWriters<'a, T> {
    pub(super) q: Vec<HeadWriter<'a, T>>,
    pub(super) k: HeadWriter<'a, T>,
    pub(super) v: HeadWriter<'a, T>,
}

impl<'a, T> GroupWriters<'a, T> {
    /// The groups of all sequences, from the writers of all query, key and value heads in the order (sequence, head).
    pub fn collect(
        dims: &Dims,
        q: impl IntoIterator<Item = HeadWriter<'a, T>>,
        k: impl IntoIterator<Item = HeadWriter<'a, T>>,
        v: impl IntoIterator<Item = HeadWriter<'a, T>>,
    ) -> Vec<Self> {
        let mut q = q.into_iter();
        k.into_iter().zip(v).map(|(k, v)| Self { q: q.by_ref().take(dims.h / dims.g).collect(), k, v }).collect()
    }
}

/// The gradients of rows `(n, d)` before the rotary embedding, from those after it; the first row is that of `token`.
pub(super) fn rotate_rows_back<'a>(
    rotation: Option<&RotaryTable>,
    token: usize,
    d: usize,
    rows: &'a mut [f32],
) -> &'a [f32] {
    if let Some(rotation) = rotation {
        let mut row = vec![0f32; d];
        for (i, gradient) in rows.chunks_exact_mut(d).enumerate() {
            rotation.rotate_back(token + i, d, gradient, &mut row);
            gradient.copy_from_slice(&row);
        }
    }
    rows
}
