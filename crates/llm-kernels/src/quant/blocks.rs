//! The block formats, and dot products of blocks with a row of quantised activations.

use super::BlockFormat;
use crate::cpu::simd::ROUND_MAGIC;

/// A row of activations quantised to 8 bits: a scale and the sum of the integers per group of 32. If a value of a
/// group is not finite, its scale is NaN, and so is every result.
pub(crate) struct QuantizedActivations {
    pub integers: Vec<[i8; 32]>,
    pub scales: Vec<f32>,
    pub sums: Vec<f32>,
}

impl QuantizedActivations {
    pub(super) fn quantize(x: &[f32]) -> Self {
        let blocks = x.len() / 32;
        let mut all = Self { integers: vec![[0; 32]; blocks], scales: vec![0.; blocks], sums: vec![0.; blocks] };
        quantize_activations(x, &mut all);
        all
    }
}

/// Activations in the form that the best instructions of this machine need.
pub(crate) enum DotInput {
    #[cfg(target_arch = "x86_64")]
    Vnni(super::vnni::VnniActivations),
    Plain(QuantizedActivations),
}

impl DotInput {
    pub(crate) fn new(x: &[f32], format: BlockFormat) -> Self {
        let x = QuantizedActivations::quantize(x);
        #[cfg(target_arch = "x86_64")]
        if super::vnni::is_available() {
            // SAFETY: the instructions are available, checked above.
            #[allow(unsafe_code)]
            return Self::Vnni(unsafe { super::vnni::VnniActivations::new(&x, format) });
        }
        Self::Plain(x)
    }
}

#[pulp::with_simd(quantize_activations = crate::cpu::unit::arch())]
#[inline(always)]
fn quantize_activations_simd<'a, S: pulp::Simd>(_simd: S, x: &'a [f32], all: &'a mut QuantizedActivations) {
    for (i, x) in x.as_chunks::<32>().0.iter().enumerate() {
        let (mut lanes, mut zeros) = ([0f32; 16], [0f32; 16]);
        for c in 0..16 {
            let (a, b) = (x[c].abs(), x[c + 16].abs());
            lanes[c] = if a > b { a } else { b };
            zeros[c] = a * 0. + b * 0.; // NaN if a value is not finite; `max` ignores NaN
        }
        let largest = crate::cpu::simd::max(&lanes);
        let zero = crate::cpu::simd::sum_lanes(&mut zeros);
        let inverse = if largest > 0. { 127. / largest } else { 0. };
        let mut integers = [0i32; 32];
        for c in 0..32 {
            // Rounds to the nearest integer, ties to even.
            integers[c] = ((x[c] * inverse + ROUND_MAGIC).to_bits() as i32)
                .wrapping_sub(ROUND_MAGIC.to_bits() as i32)
                .clamp(-127, 127);
        }
        for (small, &integer) in all.integers[i].iter_mut().zip(&integers) {
            *small = integer as i8;
        }
        let mut sum = 0;
        for &integer in &integers {
            sum += integer;
        }
        all.scales[i] = largest / 127. + zero;
        all.sums[i] = sum as f32;
    }
}

/// The dot product of each row of blocks with the activations.
pub(crate) fn dots(format: BlockFormat, blocks: &[u8], row_bytes: usize, x: &DotInput, y: &mut [f32]) {
    let x = match x {
        // SAFETY: this variant is only made if the machine has the instructions.
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code)]
        DotInput::Vnni(x) => return unsafe { super::vnni::dots(format, blocks, row_bytes, x, y) },
        DotInput::Plain(x) => x,
    };
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = crate::cpu::unit::avx2() {
        return simd.vectorize(super::avx2::QuantizedDots { simd, format, blocks, row_bytes, x, y });
    }
    portable_dots(format, blocks, row_bytes, x, y);
}

#[pulp::with_simd(portable_dots = crate::cpu::unit::arch())]
#[inline(always)]
pub(super) fn portable_dots_simd<'a, S: pulp::Simd>(
    _simd: S,
    format: BlockFormat,
    blocks: &'a [u8],
    row_bytes: usize,
    x: &'a QuantizedActivations,
    y: &'a mut [f32],
) {
    for (row, y) in blocks.chunks_exact(row_bytes).zip(y) {
        let mut sum = 0.;
        // One loop per format: a function passed as an argument would not be compiled for the current instruction set.
        match format {
            BlockFormat::Q8_0 => {
                for (i, block) in row.as_chunks().0.iter().enumerate() {
                    sum += q8_0(block, x, i);
                }
            }
            BlockFormat::Q4_0 => {
                for (i, block) in row.as_chunks().0.iter().enumerate() {
                    sum += q4_0(block, x, i);
                }
            }
            BlockFormat::Q4_K => {
                for (i, block) in row.as_chunks().0.iter().enumerate() {
                    sum += q4_k(block, x, i);
                }
            }
            BlockFormat::Q6_K => {
                for (i, block) in row.as_chunks().0.iter().enumerate() {
                    sum += q6_k(block, x, i);
                }
            }
        }
        *y = sum;
    }
}

#[inline(always)]
fn integer_dot<const N: usize>(a: &[i8; N], b: &[i8; N]) -> i32 {
    let mut sum = 0;
    for i in 0..N {
        sum += i32::from(a[i]) * i32::from(b[i]);
    }
    sum
}

#[inline(always)]
fn q8_0(block: &[u8; 34], x: &QuantizedActivations, i: usize) -> f32 {
    let mut w = [0i8; 32];
    for j in 0..32 {
        w[j] = block[2 + j] as i8;
    }
    f16_to_f32(block, 0) * x.scales[i] * integer_dot(&w, &x.integers[i]) as f32
}

#[inline(always)]
fn q4_0(block: &[u8; 18], x: &QuantizedActivations, i: usize) -> f32 {
    // w = d · (q - 8): the 8 is subtracted from the sum at once.
    let sum = nibbles_dot(&block[2..18], &x.integers[i]);
    f16_to_f32(block, 0) * x.scales[i] * (sum as f32 - 8. * x.sums[i])
}

/// 16 bytes; their low nibbles belong to the first 16 activations, the high nibbles to the last 16.
#[inline(always)]
fn nibbles_dot(q: &[u8], x: &[i8; 32]) -> i32 {
    let mut w = [0i8; 32];
    for j in 0..16 {
        w[j] = (q[j] & 15) as i8;
        w[j + 16] = (q[j] >> 4) as i8;
    }
    integer_dot(&w, x)
}

#[inline(always)]
fn q4_k(block: &[u8; 144], x: &QuantizedActivations, i: usize) -> f32 {
    let (d, low) = (f16_to_f32(block, 0), f16_to_f32(block, 2));
    let mut sum = 0.;
    for part in 0..4 {
        let q = &block[16 + 32 * part..48 + 32 * part];
        for high in 0..2 {
            let (j, at) = (2 * part + high, 8 * i + 2 * part + high);
            let (scale, min) = scale_and_min(&block[4..16], j);
            let mut w = [0i8; 32];
            for l in 0..32 {
                w[l] = ((q[l] >> (4 * high)) & 15) as i8;
            }
            let product = integer_dot(&w, &x.integers[at]) as f32;
            sum += x.scales[at] * (d * scale * product - low * min * x.sums[at]);
        }
    }
    sum
}

/// Scale and minimum of sub-block `j`, 6 bits each, packed into 12 bytes.
#[inline(always)]
pub(crate) fn scale_and_min(q: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (q[j] & 63, q[j + 4] & 63)
    } else {
        ((q[j + 4] & 15) | ((q[j - 4] >> 6) << 4), (q[j + 4] >> 4) | ((q[j] >> 6) << 4))
    };
    (f32::from(scale), f32::from(min))
}

/// The integers of part `part` (of 8) of a Q6_K block.
#[inline(always)]
fn q6_k_values(block: &[u8; 210], part: usize) -> [i8; 32] {
    let (side, quarter) = (part / 4, part % 4);
    let low = &block[64 * side + 32 * (quarter % 2)..][..32];
    let high = &block[128 + 32 * side..][..32];
    let (low_shift, high_shift) = (4 * (quarter / 2), 2 * quarter);
    let mut integers = [0i8; 32];
    for l in 0..32 {
        integers[l] = (((low[l] >> low_shift) & 15) | (((high[l] >> high_shift) & 3) << 4)) as i8 - 32;
    }
    integers
}

#[inline(always)]
fn q6_k(block: &[u8; 210], x: &QuantizedActivations, i: usize) -> f32 {
    let mut sum = 0.;
    for part in 0..8 {
        let (w, x_part) = (q6_k_values(block, part), &x.integers[8 * i + part]);
        let scale = |j: usize| f32::from(block[192 + 2 * part + j] as i8);
        let (ours, theirs) = (w.as_chunks::<16>().0, x_part.as_chunks::<16>().0);
        let first = scale(0) * integer_dot(&ours[0], &theirs[0]) as f32;
        let second = scale(1) * integer_dot(&ours[1], &theirs[1]) as f32;
        sum += x.scales[8 * i + part] * (first + second);
    }
    f16_to_f32(block, 208) * sum
}

#[pulp::with_simd(dequantize_row = crate::cpu::unit::arch())]
#[inline(always)]
pub(super) fn dequantize_row_simd<'a, S: pulp::Simd>(_simd: S, format: BlockFormat, row: &'a [u8], out: &'a mut [f32]) {
    match format {
        BlockFormat::Q8_0 => {
            for (block, out) in row.as_chunks::<34>().0.iter().zip(out.as_chunks_mut::<32>().0) {
                let d = f16_to_f32(block, 0);
                for (out, &q) in out.iter_mut().zip(&block[2..]) {
                    *out = d * f32::from(q as i8);
                }
            }
        }
        BlockFormat::Q4_0 => {
            for (block, out) in row.as_chunks::<18>().0.iter().zip(out.as_chunks_mut::<32>().0) {
                let d = f16_to_f32(block, 0);
                for (j, &q) in block[2..].iter().enumerate() {
                    out[j] = d * (f32::from(q & 15) - 8.);
                    out[j + 16] = d * (f32::from(q >> 4) - 8.);
                }
            }
        }
        BlockFormat::Q4_K => {
            for (block, out) in row.as_chunks::<144>().0.iter().zip(out.as_chunks_mut::<256>().0) {
                let (d, low) = (f16_to_f32(block, 0), f16_to_f32(block, 2));
                for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                    let (scale, min) = scale_and_min(&block[4..16], j);
                    let q = &block[16 + 32 * (j / 2)..][..32];
                    for (out, q) in out.iter_mut().zip(q) {
                        *out = d * scale * f32::from((q >> (4 * (j % 2))) & 15) - low * min;
                    }
                }
            }
        }
        BlockFormat::Q6_K => {
            for (block, out) in row.as_chunks::<210>().0.iter().zip(out.as_chunks_mut::<256>().0) {
                let d = f16_to_f32(block, 208);
                for (part, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                    for (l, (out, q)) in out.iter_mut().zip(q6_k_values(block, part)).enumerate() {
                        *out = d * f32::from(block[192 + 2 * part + l / 16] as i8) * f32::from(q);
                    }
                }
            }
        }
    }
}

/// `N` bytes of a block, from `at` on.
#[inline(always)]
pub(crate) fn read_bytes<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    let mut copy = [0; N];
    copy.copy_from_slice(&block[at..at + N]);
    copy
}

/// Reads the f16 at byte `at`, by shifting its bits into an f32.
#[inline(always)]
pub(crate) fn f16_to_f32(block: &[u8], at: usize) -> f32 {
    let bits = u32::from(u16::from_le_bytes([block[at], block[at + 1]]));
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23); // · 2^112
    // The largest exponent means infinity or NaN, in f16 as in f32.
    let largest_exponent = if bits & 0x7c00 == 0x7c00 { f32::INFINITY.to_bits() } else { 0 };
    f32::from_bits(magnitude.to_bits() | largest_exponent | ((bits & 0x8000) << 16))
}
