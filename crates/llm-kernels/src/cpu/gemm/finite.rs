//! Checks that elements stay finite when a matmul rounds them to bf16: they are finite, and not so large that they
//! round to infinity.

use half::bf16;

use super::Matrix;

/// The bits of the smallest magnitude that rounds to infinity.
const FIRST_OVERFLOW: u32 = 0x7f7f_8000;

#[pulp::with_simd(f32s = crate::cpu::unit::arch())]
#[inline(always)]
pub(super) fn f32s_simd<S: pulp::Simd>(_simd: S, rows: Matrix<'_>) -> bool {
    let (mut largest, mut rest_max) = ([0u32; 16], 0);
    for i in 0..rows.rows {
        let (chunks, rest) = rows.row(i).as_chunks::<16>();
        for chunk in chunks {
            for c in 0..16 {
                largest[c] = largest[c].max(chunk[c].abs().to_bits());
            }
        }
        for x in rest {
            rest_max = x.abs().to_bits().max(rest_max);
        }
    }
    rest_max < FIRST_OVERFLOW && largest.iter().all(|&bits| bits < FIRST_OVERFLOW)
}

#[pulp::with_simd(bf16s = crate::cpu::unit::arch())]
#[inline(always)]
pub(super) fn bf16s_simd<S: pulp::Simd>(_simd: S, rows: Matrix<'_, bf16>) -> bool {
    let (mut largest, mut rest_max) = ([0u16; 32], 0);
    for i in 0..rows.rows {
        let (chunks, rest) = rows.row(i).as_chunks::<32>();
        for chunk in chunks {
            for c in 0..32 {
                largest[c] = largest[c].max(chunk[c].to_bits() & 0x7fff);
            }
        }
        for x in rest {
            rest_max = rest_max.max(x.to_bits() & 0x7fff);
        }
    }
    u32::from(rest_max) << 16 < FIRST_OVERFLOW && largest.iter().all(|&bits| u32::from(bits) << 16 < FIRST_OVERFLOW)
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::super::{Element, Matrix};

    /// Puts `number` at each position of rows that do and do not fill whole vectors.
    fn check<T: Element>(convert: impl Fn(f32) -> T, number: f32, stays: bool) {
        for (rows, cols) in [(1, 1), (3, 40), (2, 32), (2, 70)] {
            for at in 0..rows * cols {
                let mut values = vec![convert(-1.5); rows * cols];
                values[at] = convert(number);
                assert_eq!(
                    T::all_finite_as_bf16(Matrix::new(&values, rows, cols)),
                    stays,
                    "{number} at {at} of {rows} x {cols}"
                );
            }
        }
    }

    #[test]
    fn every_element_of_every_row_is_checked() {
        for broken in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            check(|x| x, broken, false);
            check(bf16::from_f32, broken, false);
            check(f16::from_f32, broken, false);
        }
        let largest = bf16::MAX.to_f32();
        for (number, stays) in [(0., true), (largest, true), (-largest, true), (f32::MAX, false), (f32::MIN, false)] {
            check(|x| x, number, stays);
            assert_eq!(bf16::from_f32(number).is_finite(), stays);
        }
        check(bf16::from_f32, largest, true);
        // Elements between rows are not part of the matrix.
        assert!(f32::all_finite_as_bf16(Matrix::with_stride(&[1., f32::NAN, 1.], 2, 1, 2)));
    }
}
