//! Dot products of rows of blocks with activations, with the best instructions of this machine. The formats have the code of
//! a block or row for each instruction set; tests compare them.

use super::activations::QuantizedActivations;
use super::{BlockFormat, q4_0, q4_k, q6_k, q8_0};
#[cfg(target_arch = "x86_64")]
use super::{avx2::Accumulator, vnni};

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
        DotInput::Vnni(x) => return unsafe { dots_vnni(format, blocks, row_bytes, x, y) },
        DotInput::Plain(x) => x,
    };
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = crate::cpu::unit::avx2() {
        return simd.vectorize(QuantizedDots { simd, format, blocks, row_bytes, x, y });
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

/// [`dots`] with AVX2.
#[cfg(target_arch = "x86_64")]
pub(super) struct QuantizedDots<'a> {
    pub simd: pulp::x86::V3,
    pub format: BlockFormat,
    pub blocks: &'a [u8],
    pub row_bytes: usize,
    pub x: &'a QuantizedActivations,
    pub y: &'a mut [f32],
}

#[cfg(target_arch = "x86_64")]
impl pulp::NullaryFnOnce for QuantizedDots<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, format, blocks, row_bytes, x, y } = self;
        for (row, y) in blocks.chunks_exact(row_bytes).zip(y) {
            let mut sum = Accumulator::new(simd);
            match format {
                BlockFormat::Q8_0 => {
                    for (i, block) in row.as_chunks().0.iter().enumerate() {
                        q8_0::x86::dot_avx2(&mut sum, block, x, i);
                    }
                }
                BlockFormat::Q4_0 => {
                    for (i, block) in row.as_chunks().0.iter().enumerate() {
                        q4_0::x86::dot_avx2(&mut sum, block, x, i);
                    }
                }
                BlockFormat::Q4_K => {
                    for (i, block) in row.as_chunks().0.iter().enumerate() {
                        q4_k::x86::dot_avx2(&mut sum, block, x, i);
                    }
                }
                BlockFormat::Q6_K => {
                    for (i, block) in row.as_chunks().0.iter().enumerate() {
                        q6_k::x86::dot_avx2(&mut sum, block, x, i);
                    }
                }
            }
            *y = sum.total();
        }
    }
}

/// [`dots`] with VNNI.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
fn dots_vnni(format: BlockFormat, blocks: &[u8], row_bytes: usize, x: &vnni::VnniActivations, y: &mut [f32]) {
    for (row, y) in blocks.chunks_exact(row_bytes).zip(y) {
        *y = std::arch::x86_64::_mm512_reduce_add_ps(match format {
            BlockFormat::Q8_0 => q8_0::x86::row_vnni(row, x),
            BlockFormat::Q4_0 => q4_0::x86::row_vnni(row, x),
            BlockFormat::Q4_K => q4_k::x86::row_vnni(row, x),
            BlockFormat::Q6_K => q6_k::x86::row_vnni(row, x),
        });
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
