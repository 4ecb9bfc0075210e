//! Q5_1: blocks of 32 weights in 24 bytes: a scale and a minimum (f16), the fifth bits of 32 integers, then their lower 4 bits.

use super::bits::{f16_to_f32, read_bytes};
use super::parts::{Part, Parts, nibbles, with_fifth_bit};

/// The format.
pub struct Q5_1;

impl Parts<24> for Q5_1 {
    const HAS_MINIMA: bool = true;

    #[inline(always)]
    fn part(block: &[u8; 24], _: usize) -> Part {
        let integers = with_fifth_bit(nibbles(&read_bytes(block, 8)), read_bytes(block, 4));
        // The minimum is added.
        Part { integers, scales: [f16_to_f32(block, 0); 2], minima: [-f16_to_f32(block, 2); 2] }
    }
}
