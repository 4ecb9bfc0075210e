//! Q5_K: blocks of 256 weights in 176 bytes: scales and minima as in Q4_K, the fifth bits of 256 integers, then their lower 4
//! bits.

use super::bits::f16_to_f32;
use super::parts::{Part, Parts};
use super::q4_k::scale_and_min;

/// The format.
pub struct Q5K;

impl Parts<176> for Q5K {
    const HAS_MINIMA: bool = true;

    #[inline(always)]
    fn part(block: &[u8; 176], j: usize) -> Part {
        let (scale, min) = scale_and_min(&block[4..16], j);
        let (high, low) = (&block[16..48], &block[48 + 32 * (j / 2)..][..32]);
        let mut integers = [0; 32];
        for l in 0..32 {
            integers[l] = ((low[l] >> (4 * (j % 2)) & 15) | (high[l] >> j & 1) << 4) as i8;
        }
        Part { integers, scales: [f16_to_f32(block, 0) * scale; 2], minima: [f16_to_f32(block, 2) * min; 2] }
    }
}
