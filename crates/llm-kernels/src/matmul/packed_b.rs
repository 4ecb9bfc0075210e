//! Right sides that several products share.

use super::{Element, How, Matrix, Precision, Threads, product_into};
#[cfg(target_arch = "x86_64")]
use super::{Out, fits, packed};

/// The right side of several products on one thread: packed once, where the machine's path packs.
pub struct Right<'a, T> {
    matrix: Matrix<'a, T>,
    precision: Precision,
    /// Empty where the path packs nothing.
    panels: Vec<u32>,
}

impl<'a, T: Element> Right<'a, T> {
    /// What a part's first column must be a multiple of; its first row must be even.
    pub const STEP: usize = 32;

    pub fn new(matrix: Matrix<'a, T>, precision: Precision) -> Self {
        #[cfg(target_arch = "x86_64")]
        if packed::is_available() {
            // SAFETY: the instructions are there, as was just asked.
            #[allow(unsafe_code)]
            let panels = unsafe {
                match precision {
                    Precision::F32 => packed::panels::<false, T>(matrix),
                    Precision::Bf16 => packed::panels::<true, T>(matrix),
                }
            };
            return Self { matrix, precision, panels };
        }
        Self { matrix, precision, panels: Vec::new() }
    }

    /// `out = a · b · scale`, or `out += a · b · scale`, where `b` is the part with the rows from `row` on, as many as `a` has
    /// columns, and the columns `cols`; `out` holds rows that begin `stride` apart.
    pub fn product_into<A: Element>(
        &self,
        a: Matrix<A>,
        [row, col]: [usize; 2],
        out: &mut [f32],
        [cols, stride]: [usize; 2],
        add: bool,
        scale: f32,
    ) {
        assert!(row.is_multiple_of(2) && col.is_multiple_of(Self::STEP), "a part begins within a panel");
        assert!(col + cols <= self.matrix.cols && row + a.cols <= self.matrix.rows, "a part reaches beyond its matrix");
        #[cfg(target_arch = "x86_64")]
        if packed::is_available() && a.rows * a.cols * cols > 0 {
            assert!(stride >= cols && fits(a.rows, cols, stride, out.len()), "a product needs more room");
            let (panels, depth) = (&self.panels, self.matrix.rows);
            let out = Out { data: out.as_mut_ptr(), stride, add, scale };
            // SAFETY: the instructions are there; the last assertion says that every row of the result lies within `out`, which
            // nobody else borrows.
            #[allow(unsafe_code)]
            return unsafe {
                match self.precision {
                    Precision::F32 => {
                        packed::product_of_panels::<false, A>(a, panels, depth, [row, col], cols, out);
                    }
                    Precision::Bf16 => {
                        packed::product_of_panels::<true, A>(a, panels, depth, [row, col], cols, out);
                    }
                }
            };
        }
        let part = self.matrix.rows_from(row, a.cols).cols_from(col, cols);
        product_into(a, part, out, stride, add, scale, How { precision: self.precision, threads: Threads::One });
    }
}
