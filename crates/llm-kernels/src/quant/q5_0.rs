//! Q5_0: blocks of 32 weights in 22 bytes: a scale (f16), the fifth bits of 32 integers, then their lower 4 bits; 16 is
//! subtracted from each integer.

use super::bits::{f16_to_f32, read_bytes};
use super::parts::{Part, Parts, nibbles, with_fifth_bit};

/// The format.
pub struct Q5_0;

impl Parts<22> for Q5_0 {
    const HAS_MINIMA: bool = false;

    #[inline(always)]
    fn part(block: &[u8; 22], _: usize) -> Part {
        let integers = with_fifth_bit(nibbles(&read_bytes(block, 6)), read_bytes(block, 2));
        Part { integers: integers.map(|q| q - 16), scales: [f16_to_f32(block, 0); 2], minima: [0.; 2] }
    }
}
