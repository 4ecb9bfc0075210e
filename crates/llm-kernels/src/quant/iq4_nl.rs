//! IQ4_NL: blocks of 32 weights in 18 bytes: a scale (f16), then 32 indices of 4 bits into [`VALUES`].

use super::bits::{f16_to_f32, read_bytes};
use super::parts::{Part, Parts, nibbles};

/// The integers of the format (ggml's `kvalues_iq4nl`).
const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The format.
pub struct Iq4Nl;

impl Parts<18> for Iq4Nl {
    #[inline(always)]
    fn part(block: &[u8; 18], _: usize) -> Part {
        let integers = nibbles(&read_bytes(block, 2)).map(|i| VALUES[i as usize & 15]);
        Part { integers, scales: [f16_to_f32(block, 0); 2], minima: [0.; 2] }
    }
}
