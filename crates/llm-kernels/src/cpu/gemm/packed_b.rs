//! B matrices that several matmuls share.

use super::{Element, GemmOptions, Matrix, Precision, Threads, matmul_into};
#[cfg(target_arch = "x86_64")]
use super::{OutputView, fits, packed};

/// The B matrix of several matmuls on one thread, packed once if the CPU runs the packed GEMM.
pub struct PackedB<'a, T> {
    matrix: Matrix<'a, T>,
    precision: Precision,
    /// Empty if the CPU runs the `gemm` crate.
    panels: Vec<u32>,
}

impl<'a, T: Element> PackedB<'a, T> {
    /// The first column of a part must be a multiple of this; its first row must be even.
    pub const ALIGN: usize = 32;

    pub fn new(matrix: Matrix<'a, T>, precision: Precision) -> Self {
        #[cfg(target_arch = "x86_64")]
        if packed::is_available() {
            // SAFETY: the instructions are available, checked above.
            #[allow(unsafe_code)]
            let panels = unsafe {
                match precision {
                    Precision::F32 => packed::pack_b_panels::<false, T>(matrix),
                    Precision::Bf16 => packed::pack_b_panels::<true, T>(matrix),
                }
            };
            return Self { matrix, precision, panels };
        }
        Self { matrix, precision, panels: Vec::new() }
    }

    /// `out = a · b · scale`, or `out += a · b · scale` if `add`. `b` is the part of the matrix with the `a.cols` rows
    /// from `row` on and the `cols` columns from `col` on. `out` has rows `stride` elements apart.
    pub fn matmul_into<A: Element>(
        &self,
        a: Matrix<A>,
        [row, col]: [usize; 2],
        out: &mut [f32],
        [cols, stride]: [usize; 2],
        add: bool,
        scale: f32,
    ) {
        assert!(row.is_multiple_of(2) && col.is_multiple_of(Self::ALIGN), "a part must start at a panel");
        assert!(col + cols <= self.matrix.cols && row + a.cols <= self.matrix.rows, "a part is out of bounds");
        #[cfg(target_arch = "x86_64")]
        if packed::is_available() && a.rows * a.cols * cols > 0 {
            assert!(stride >= cols && fits(a.rows, cols, stride, out.len()), "the output of a matmul is too small");
            let (panels, depth) = (&self.panels, self.matrix.rows);
            let out = OutputView { data: out.as_mut_ptr(), stride, accumulate: add, scale };
            // SAFETY: the instructions are available. The last assertion ensures that every row of the result is
            // inside `out`, which is borrowed exclusively.
            #[allow(unsafe_code)]
            return unsafe {
                match self.precision {
                    Precision::F32 => {
                        packed::matmul_packed::<false, A>(a, panels, depth, [row, col], cols, out);
                    }
                    Precision::Bf16 => {
                        packed::matmul_packed::<true, A>(a, panels, depth, [row, col], cols, out);
                    }
                }
            };
        }
        let part = self.matrix.rows_from(row, a.cols).cols_from(col, cols);
        matmul_into(a, part, out, stride, add, scale, GemmOptions { precision: self.precision, threads: Threads::One });
    }
}
