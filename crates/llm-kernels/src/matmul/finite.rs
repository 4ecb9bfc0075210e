//! Whether numbers stay finite in a product that rounds them to bf16: they do if they are finite, and not so large that they
//! round to infinity.

use half::bf16;

use super::Matrix;

/// The bits of the least magnitude that rounds to infinity.
const END: u32 = 0x7f7f_8000;

#[pulp::with_simd(f32s = crate::unit::arch())]
#[inline(always)]
pub(super) fn f32s_simd<S: pulp::Simd>(_simd: S, rows: Matrix<'_>) -> bool {
    let (mut largest, mut of_rests) = ([0u32; 16], 0);
    for i in 0..rows.rows {
        let (chunks, rest) = rows.row(i).as_chunks::<16>();
        for chunk in chunks {
            for c in 0..16 {
                largest[c] = largest[c].max(chunk[c].abs().to_bits());
            }
        }
        for x in rest {
            of_rests = x.abs().to_bits().max(of_rests);
        }
    }
    of_rests < END && largest.iter().all(|&bits| bits < END)
}

#[pulp::with_simd(bf16s = crate::unit::arch())]
#[inline(always)]
pub(super) fn bf16s_simd<S: pulp::Simd>(_simd: S, rows: Matrix<'_, bf16>) -> bool {
    let (mut largest, mut of_rests) = ([0u16; 32], 0);
    for i in 0..rows.rows {
        let (chunks, rest) = rows.row(i).as_chunks::<32>();
        for chunk in chunks {
            for c in 0..32 {
                largest[c] = largest[c].max(chunk[c].to_bits() & 0x7fff);
            }
        }
        for x in rest {
            of_rests = of_rests.max(x.to_bits() & 0x7fff);
        }
    }
    u32::from(of_rests) << 16 < END && largest.iter().all(|&bits| u32::from(bits) << 16 < END)
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::super::{Element, Matrix};

    /// One number among others, at each place of rows that fill lanes and of rows that do not.
    fn check<T: Element>(convert: impl Fn(f32) -> T, number: f32, stays: bool) {
        for (rows, cols) in [(1, 1), (3, 40), (2, 32), (2, 70)] {
            for at in 0..rows * cols {
                let mut numbers = vec![convert(-1.5); rows * cols];
                numbers[at] = convert(number);
                assert_eq!(
                    T::stay_finite(Matrix::new(&numbers, rows, cols)),
                    stays,
                    "{number} at {at} of {rows} x {cols}"
                );
            }
        }
    }

    #[test]
    fn every_number_of_every_row_is_looked_at() {
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
        // What lies between rows is not a part of them.
        assert!(f32::stay_finite(Matrix::with_stride(&[1., f32::NAN, 1.], 2, 1, 2)));
    }
}
