//! The numbers in pages of keys and values: f32, or bf16 in pairs.

use pulp::Simd;

use crate::cpu::rounding::f32_to_bf16_bits;

/// An element of a row of a page. Rows have a multiple of [`BLOCK`] numbers.
pub trait PageElement: Copy + Send + Sync {
    /// Numbers in an element.
    const NUMBERS: usize;

    /// Rounds a number and writes it to index `i` of a row.
    fn put(row: &mut [Self], i: usize, x: f32);

    /// Number `i` of a row.
    fn get(row: &[Self], i: usize) -> f32;

    /// Pair `p` of vectors of a row, in f32.
    fn pair<S: Simd>(simd: S, row: &[Self], p: usize) -> [S::f32s; 2];

    /// The indices in the row of the first numbers of pair `p` of vectors with `lanes` lanes.
    fn starts(lanes: usize, p: usize) -> [usize; 2];
}

/// Numbers of a block of a row: a pair of the widest vectors.
pub const BLOCK: usize = 32;

impl PageElement for f32 {
    const NUMBERS: usize = 1;

    #[inline(always)]
    fn put(row: &mut [Self], i: usize, x: f32) {
        row[i] = x;
    }

    fn get(row: &[Self], i: usize) -> f32 {
        row[i]
    }

    #[inline(always)]
    fn pair<S: Simd>(_simd: S, row: &[Self], p: usize) -> [S::f32s; 2] {
        let vectors = S::as_simd_f32s(row).0;
        [vectors[2 * p], vectors[2 * p + 1]]
    }

    #[inline(always)]
    fn starts(lanes: usize, p: usize) -> [usize; 2] {
        [2 * p * lanes, (2 * p + 1) * lanes]
    }
}

/// Two bf16 numbers of a block: number `i` in the low half and number `i + 16` in the high half of element `i`. So a vector of
/// elements becomes two vectors of consecutive numbers by a shift and a mask.
impl PageElement for u32 {
    const NUMBERS: usize = 2;

    #[inline(always)]
    fn put(row: &mut [Self], i: usize, x: f32) {
        let (element, bits) = (&mut row[i / 32 * 16 + i % 16], Self::from(f32_to_bf16_bits(x)));
        *element = if i % 32 < 16 { *element & 0xffff_0000 | bits } else { *element & 0xffff | bits << 16 };
    }

    fn get(row: &[Self], i: usize) -> f32 {
        let element = row[i / 32 * 16 + i % 16];
        f32::from_bits(if i % 32 < 16 { element << 16 } else { element & 0xffff_0000 })
    }

    #[inline(always)]
    fn pair<S: Simd>(simd: S, row: &[Self], p: usize) -> [S::f32s; 2] {
        let elements = S::as_simd_u32s(row).0[p];
        let low = simd.wrapping_dyn_shl_u32s(elements, simd.splat_u32s(16));
        let high = simd.and_u32s(elements, simd.splat_u32s(0xffff_0000));
        [simd.transmute_f32s_u32s(low), simd.transmute_f32s_u32s(high)]
    }

    #[inline(always)]
    fn starts(lanes: usize, p: usize) -> [usize; 2] {
        let low = p * lanes / 16 * 32 + p * lanes % 16;
        [low, low + 16]
    }
}
