//! Dot products of rows of blocks with activations, with the best instructions of this machine. The formats have the code of
//! a block or row for each instruction set; tests compare them.

use super::activations::QuantizedActivations;
use super::iq4_nl::Iq4Nl;
use super::q2_k::Q2K;
use super::q3_k::Q3K;
use super::q4_1::Q4_1;
use super::q5_0::Q5_0;
use super::q5_1::Q5_1;
use super::q5_k::Q5K;
use super::{BlockFormat, parts, q4_0, q4_k, q6_k, q8_0};
#[cfg(target_arch = "x86_64")]
use super::{
    avx2::Accumulator,
    vnni::{self, X86Format},
};

/// Activations in the form that the best instructions of this machine need.
pub(crate) enum DotInput {
    #[cfg(target_arch = "x86_64")]
    Vnni(X86Format, vnni::VnniActivations),
    Plain(QuantizedActivations),
}

impl DotInput {
    pub(crate) fn new(x: &[f32], format: BlockFormat) -> Self {
        let x = QuantizedActivations::quantize(x);
        #[cfg(target_arch = "x86_64")]
        if let Some(format) = X86Format::of(format).filter(|_| vnni::is_available()) {
            // SAFETY: the instructions are available, checked above.
            #[allow(unsafe_code)]
            return Self::Vnni(format, unsafe { vnni::VnniActivations::new(&x, format) });
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
        DotInput::Vnni(format, x) => return unsafe { dots_vnni(*format, blocks, row_bytes, x, y) },
        DotInput::Plain(x) => x,
    };
    #[cfg(target_arch = "x86_64")]
    if let (Some(simd), Some(format)) = (crate::cpu::unit::avx2(), X86Format::of(format)) {
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
            BlockFormat::Q4_1 => sum = parts::dot::<Q4_1, 20, 1>(row, x),
            BlockFormat::Q5_0 => sum = parts::dot::<Q5_0, 22, 1>(row, x),
            BlockFormat::Q5_1 => sum = parts::dot::<Q5_1, 24, 1>(row, x),
            BlockFormat::Q2_K => sum = parts::dot::<Q2K, 84, 8>(row, x),
            BlockFormat::Q3_K => sum = parts::dot::<Q3K, 110, 8>(row, x),
            BlockFormat::Q5_K => sum = parts::dot::<Q5K, 176, 8>(row, x),
            BlockFormat::IQ4_NL => sum = parts::dot::<Iq4Nl, 18, 1>(row, x),
        }
        *y = sum;
    }
}

/// [`dots`] with AVX2.
#[cfg(target_arch = "x86_64")]
pub(super) struct QuantizedDots<'a> {
    pub simd: pulp::x86::V3,
    pub format: X86Format,
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
                X86Format::Q8_0 => {
                    for (i, block) in row.as_chunks().0.iter().enumerate() {
                        q8_0::x86::dot_avx2(&mut sum, block, x, i);
                    }
                }
                X86Format::Q4_0 => {
                    for (i, block) in row.as_chunks().0.iter().enumerate() {
                        q4_0::x86::dot_avx2(&mut sum, block, x, i);
                    }
                }
                X86Format::Q4_K => {
                    for (i, block) in row.as_chunks().0.iter().enumerate() {
                        q4_k::x86::dot_avx2(&mut sum, block, x, i);
                    }
                }
                X86Format::Q6_K => {
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
fn dots_vnni(format: X86Format, blocks: &[u8], row_bytes: usize, x: &vnni::VnniActivations, y: &mut [f32]) {
    for (row, y) in blocks.chunks_exact(row_bytes).zip(y) {
        *y = std::arch::x86_64::_mm512_reduce_add_ps(match format {
            X86Format::Q8_0 => q8_0::x86::row_vnni(row, x),
            X86Format::Q4_0 => q4_0::x86::row_vnni(row, x),
            X86Format::Q4_K => q4_k::x86::row_vnni(row, x),
            X86Format::Q6_K => q6_k::x86::row_vnni(row, x),
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
        BlockFormat::Q4_1 => parts::dequantize::<Q4_1, 20, 1>(row, out),
        BlockFormat::Q5_0 => parts::dequantize::<Q5_0, 22, 1>(row, out),
        BlockFormat::Q5_1 => parts::dequantize::<Q5_1, 24, 1>(row, out),
        BlockFormat::Q2_K => parts::dequantize::<Q2K, 84, 8>(row, out),
        BlockFormat::Q3_K => parts::dequantize::<Q3K, 110, 8>(row, out),
        BlockFormat::Q5_K => parts::dequantize::<Q5K, 176, 8>(row, out),
        BlockFormat::IQ4_NL => parts::dequantize::<Iq4Nl, 18, 1>(row, out),
    }
}
