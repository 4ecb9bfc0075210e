//! What the formats that are only read share: a block is a list of [`Part`]s of 32 weights.

use super::activations::QuantizedActivations;
use super::bits::integer_dot;

/// 32 weights: `scale · integer - minimum`, with a scale and a minimum for each half.
pub struct Part {
    pub integers: [i8; 32],
    pub scales: [f32; 2],
    pub minima: [f32; 2],
}

/// A format with blocks of `N` bytes.
pub trait Parts<const N: usize> {
    /// Part `j` of a block.
    fn part(block: &[u8; N], j: usize) -> Part;
}

/// Writes the weights of a row of blocks with `COUNT` parts.
#[inline(always)]
pub fn dequantize<F: Parts<N>, const N: usize, const COUNT: usize>(row: &[u8], out: &mut [f32]) {
    let parts = out.as_chunks_mut::<32>().0.chunks_exact_mut(COUNT);
    for (block, out) in row.as_chunks::<N>().0.iter().zip(parts) {
        for (j, out) in out.iter_mut().enumerate() {
            let Part { integers, scales, minima } = F::part(block, j);
            for l in 0..16 {
                out[l] = scales[0] * f32::from(integers[l]) - minima[0];
                out[l + 16] = scales[1] * f32::from(integers[l + 16]) - minima[1];
            }
        }
    }
}

/// The dot product of a row of blocks with `COUNT` parts with the activations.
#[inline(always)]
pub fn dot<F: Parts<N>, const N: usize, const COUNT: usize>(row: &[u8], x: &QuantizedActivations) -> f32 {
    let mut sum = 0.;
    for (i, block) in row.as_chunks::<N>().0.iter().enumerate() {
        for j in 0..COUNT {
            let (part, at) = (F::part(block, j), COUNT * i + j);
            let (ours, theirs) = (part.integers.as_chunks::<16>().0, x.integers[at].as_chunks::<16>().0);
            let (mut products, mut sums) = ([0f32; 2], [0f32; 2]);
            for half in 0..2 {
                products[half] = integer_dot(&ours[half], &theirs[half]) as f32;
                sums[half] = integer_dot(&[1; 16], &theirs[half]) as f32;
            }
            let [low, high] = [0, 1].map(|half| part.scales[half] * products[half] - part.minima[half] * sums[half]);
            sum += x.scales[at] * (low + high);
        }
    }
    sum
}

/// The low nibbles of 16 bytes, then the high nibbles.
#[inline(always)]
pub fn nibbles(bytes: &[u8; 16]) -> [i8; 32] {
    let mut integers = [0; 32];
    for l in 0..16 {
        integers[l] = (bytes[l] & 15) as i8;
        integers[l + 16] = (bytes[l] >> 4) as i8;
    }
    integers
}

/// Adds bit `l` of `bits` to integer `l`, as its bit 4.
#[inline(always)]
pub fn with_fifth_bit(mut integers: [i8; 32], bits: [u8; 4]) -> [i8; 32] {
    let bits = u32::from_le_bytes(bits);
    for (l, integer) in integers.iter_mut().enumerate() {
        *integer |= ((bits >> l & 1) << 4) as i8;
    }
    integers
}
