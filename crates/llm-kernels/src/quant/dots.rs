//! Dot products of rows of blocks with activations, with the best instructions of this machine.

use super::activations::QuantizedActivations;
use super::{BlockFormat, q4_0, q4_k, q6_k, q8_0};
#[cfg(target_arch = "x86_64")]
use super::{avx2, vnni};

/// Activations in the form that the best instructions of this machine need.
pub(crate) enum DotInput {
    #[cfg(target_arch = "x86_64")]
    Vnni(vnni::VnniActivations),
    Plain(QuantizedActivations),
}

impl DotInput {
    pub(crate) fn new(x: &[f32], format: BlockFormat) -> Self {
        let x = QuantizedActivations::quantize(x);
        #[cfg(target_arch = "x86_64")]
        if vnni::is_available() {
            // SAFETY: the instructions are available, checked above.
            #[allow(unsafe_code)]
            return Self::Vnni(unsafe { vnni::VnniActivations::new(&x, format) });
        }
        Self::Plain(x)
    }
}

/// The dot product of each row of blocks with the activations.
pub(crate) fn dots(format: BlockFormat, blocks: &[u8], row_bytes: usize, x: &DotInput, y: &mut [f32]) {
    let x = match x {
        // SAFETY: this variant is only made if the machine has the instructions.
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code)]
        DotInput::Vnni(x) => return unsafe { vnni::dots(format, blocks, row_bytes, x, y) },
        DotInput::Plain(x) => x,
    };
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = crate::cpu::unit::avx2() {
        return simd.vectorize(avx2::QuantizedDots { simd, format, blocks, row_bytes, x, y });
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
                    sum += q8_0::dot(block, x, i);
                }
            }
            BlockFormat::Q4_0 => {
                for (i, block) in row.as_chunks().0.iter().enumerate() {
                    sum += q4_0::dot(block, x, i);
                }
            }
            BlockFormat::Q4_K => {
                for (i, block) in row.as_chunks().0.iter().enumerate() {
                    sum += q4_k::dot(block, x, i);
                }
            }
            BlockFormat::Q6_K => {
                for (i, block) in row.as_chunks().0.iter().enumerate() {
                    sum += q6_k::dot(block, x, i);
                }
            }
        }
        *y = sum;
    }
}

/// Dequantises a row of blocks.
#[pulp::with_simd(dequantize_row = crate::cpu::unit::arch())]
#[inline(always)]
pub(super) fn dequantize_row_simd<'a, S: pulp::Simd>(_simd: S, format: BlockFormat, row: &'a [u8], out: &'a mut [f32]) {
    match format {
        BlockFormat::Q8_0 => q8_0::dequantize(row, out),
        BlockFormat::Q4_0 => q4_0::dequantize(row, out),
        BlockFormat::Q4_K => q4_k::dequantize(row, out),
        BlockFormat::Q6_K => q6_k::dequantize(row, out),
    }
}
