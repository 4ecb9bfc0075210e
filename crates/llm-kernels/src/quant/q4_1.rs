//! Q4_1: blocks of 32 weights in 20 bytes: a scale and a minimum (f16), then 32 integers of 4 bits.

use super::bits::{f16_to_f32, read_bytes};
use super::parts::{Part, Parts, nibbles};

/// The format.
pub struct Q4_1;

impl Parts<20> for Q4_1 {
    const HAS_MINIMA: bool = true;

    #[inline(always)]
    fn part(block: &[u8; 20], _: usize) -> Part {
        // The minimum is added.
        let (d, low) = (f16_to_f32(block, 0), -f16_to_f32(block, 2));
        Part { integers: nibbles(&read_bytes(block, 4)), scales: [d; 2], minima: [low; 2] }
    }
}
