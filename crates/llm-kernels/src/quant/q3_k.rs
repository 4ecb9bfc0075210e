//! Q3_K: blocks of 256 weights in 110 bytes: the third bits of 256 integers, their lower 2 bits, a 6-bit scale for each of 16
//! groups, then a scale (f16). 4 is subtracted from each integer, 32 from each scale.

use super::bits::f16_to_f32;
use super::parts::{Part, Parts};

/// The format.
pub struct Q3K;

impl Parts<110> for Q3K {
    const HAS_MINIMA: bool = false;

    #[inline(always)]
    fn part(block: &[u8; 110], j: usize) -> Part {
        let (high, low) = (&block[..32], &block[32 + 32 * (j / 4)..][..32]);
        let mut integers = [0; 32];
        for l in 0..32 {
            integers[l] = ((low[l] >> (2 * (j % 4)) & 3) | (high[l] >> j & 1) << 2) as i8 - 4;
        }
        let (packed, d) = (&block[96..108], f16_to_f32(block, 108));
        let scale = |group: usize| {
            let four = packed[group % 8] >> (4 * (group / 8)) & 15;
            let two = packed[8 + group % 4] >> (2 * (group / 4)) & 3;
            d * f32::from((four | two << 4) as i8 - 32)
        };
        Part { integers, scales: [scale(2 * j), scale(2 * j + 1)], minima: [0.; 2] }
    }
}
