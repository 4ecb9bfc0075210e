//! A matrix whose element type is known at run time.

use std::ops::Range;

use half::{bf16, f16};

use super::{Element, GemmOptions, Matrix, matmul_few_rows, matmul_into};

/// A [`Matrix`] of any element type.
#[derive(Debug, Clone, Copy)]
pub enum AnyMatrix<'a> {
    F32(Matrix<'a>),
    Bf16(Matrix<'a, bf16>),
    F16(Matrix<'a, f16>),
}

impl AnyMatrix<'_> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Self::F32(m) => m.rows(),
            Self::Bf16(m) => m.rows(),
            Self::F16(m) => m.rows(),
        }
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        match self {
            Self::F32(m) => m.cols(),
            Self::Bf16(m) => m.cols(),
            Self::F16(m) => m.cols(),
        }
    }

    /// The size of the elements.
    pub fn bytes(&self) -> usize {
        let size = match self {
            Self::F32(_) => size_of::<f32>(),
            Self::Bf16(_) | Self::F16(_) => size_of::<u16>(),
        };
        self.rows() * self.cols() * size
    }

    /// The transposed view.
    pub fn t(self) -> Self {
        match self {
            Self::F32(m) => Self::F32(m.t()),
            Self::Bf16(m) => Self::Bf16(m.t()),
            Self::F16(m) => Self::F16(m.t()),
        }
    }

    /// `out = a · self`, or `out += a · self` if `add`, with rows of `out` `stride` elements apart.
    pub fn matmul_into<A: Element>(
        self,
        a: Matrix<A>,
        out: &mut [f32],
        stride: usize,
        add: bool,
        options: GemmOptions,
    ) {
        match self {
            Self::F32(b) => matmul_into(a, b, out, stride, add, 1., options),
            Self::Bf16(b) => matmul_into(a, b, out, stride, add, 1., options),
            Self::F16(b) => matmul_into(a, b, out, stride, add, 1., options),
        }
    }

    /// `x · selfᵀ` for the given rows of the matrix, with [`matmul_few_rows`]. Panics if rows are not contiguous.
    pub fn times_few_rows(self, rows: Range<usize>, x: &[f32], out: &mut [&mut [f32]]) {
        let k = self.cols();
        match self {
            Self::F32(w) => matmul_few_rows(x, w.row_slice(rows), k, out),
            Self::Bf16(w) => matmul_few_rows(x, w.row_slice(rows), k, out),
            Self::F16(w) => matmul_few_rows(x, w.row_slice(rows), k, out),
        }
    }
}

impl<'a> From<Matrix<'a>> for AnyMatrix<'a> {
    fn from(matrix: Matrix<'a>) -> Self {
        Self::F32(matrix)
    }
}
