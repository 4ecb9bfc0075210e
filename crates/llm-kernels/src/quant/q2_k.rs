//! Q2_K: blocks of 256 weights in 84 bytes: a scale and a minimum of 4 bits for each of 16 groups, 256 integers of 2 bits, then
//! the scale of the scales and that of the minima (f16).

use super::bits::f16_to_f32;
use super::parts::{Part, Parts};

/// The format.
pub struct Q2K;

impl Parts<84> for Q2K {
    const HAS_MINIMA: bool = true;

    #[inline(always)]
    fn part(block: &[u8; 84], j: usize) -> Part {
        let q = &block[16 + 32 * (j / 4)..][..32];
        let mut integers = [0; 32];
        for l in 0..32 {
            integers[l] = (q[l] >> (2 * (j % 4)) & 3) as i8;
        }
        let groups = [block[2 * j], block[2 * j + 1]];
        let (d, low) = (f16_to_f32(block, 80), f16_to_f32(block, 82));
        Part {
            integers,
            scales: groups.map(|group| d * f32::from(group & 15)),
            minima: groups.map(|group| low * f32::from(group >> 4)),
        }
    }
}
