//! Dot products of rows of blocks with activations, with the best instructions of this machine. The formats have the code of
//! a block or row for each instruction set; tests compare them.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::_mm512_setzero_ps;
use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use pulp::x86::{V3, V4};
use rayon::prelude::*;

use super::activations::QuantizedActivations;
use super::iq4_nl::Iq4Nl;
use super::q2_k::Q2K;
use super::q3_k::Q3K;
use super::q4_1::Q4_1;
use super::q5_0::Q5_0;
use super::q5_1::Q5_1;
use super::q5_k::Q5K;
use super::{BlockFormat, IntegerFormat, parts, q4_0, q4_k, q6_k, q8_0};
#[cfg(target_arch = "x86_64")]
use super::{avx2::Accumulator, iq4_nl, vnni};
use crate::cpu::gemm::matmul_few_rows;
#[cfg(target_arch = "x86_64")]
use crate::cpu::simd::lane_sums;

/// Rows of activations in the form that a format and the best instructions of this machine need.
pub(crate) enum DotInput<'a> {
    #[cfg(target_arch = "x86_64")]
    Vnni(V4, BlockFormat, Vec<vnni::VnniActivations>),
    Integers(IntegerFormat, Vec<QuantizedActivations>),
    /// `(n, k)`, for a weight that is dequantised.
    Floats(&'a [f32]),
}

impl<'a> DotInput<'a> {
    /// Prepares `x` `(n, k)` for a weight in `format`.
    pub(crate) fn new(x: &'a [f32], k: usize, format: BlockFormat) -> Self {
        const ROWS_PER_TASK: usize = 4;
        let rows = x.par_chunks_exact(k).with_min_len(ROWS_PER_TASK).map(QuantizedActivations::quantize);
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = vnni::available() {
            // SAFETY: the instructions are available, as `simd` shows.
            #[allow(unsafe_code)]
            return Self::Vnni(simd, format, rows.map(|x| unsafe { vnni::VnniActivations::new(&x, format) }).collect());
        }
        let Some(format) = IntegerFormat::of(format) else { return Self::Floats(x) };
        Self::Integers(format, rows.collect())
    }
}

/// Rows of activations that are multiplied with an unpacked block at a time.
const MAX_ROWS: usize = 4;

/// Bytes of blocks that are multiplied with all rows of activations before the next ones are read; they stay in the L2 cache.
const PART_BYTES: usize = 1 << 16;

/// The dot product of each row of blocks with each row of activations: that of row `j` with row `i` is written to `out[i][j]`.
///
/// A block is unpacked once for 1, 2 or 4 rows of activations. Integers are summed exactly and blocks in their order, so the
/// result of a row does not depend on the other rows.
pub(crate) fn dots(format: BlockFormat, blocks: &[u8], row_bytes: usize, x: &DotInput, out: &mut [&mut [f32]]) {
    if let DotInput::Floats(x) = x {
        return dots_of_dequantized(format, blocks, row_bytes, x, out);
    }
    let n = out.len();
    let at_once = n.is_power_of_two() && n <= MAX_ROWS;
    let rows = if at_once { blocks.len() / row_bytes } else { (PART_BYTES / row_bytes).next_multiple_of(16).max(16) };
    for (part, blocks) in blocks.chunks((rows * row_bytes).max(1)).enumerate() {
        let columns = part * rows..part * rows + blocks.len() / row_bytes;
        let mut first = 0;
        while first < n {
            let end = first + (1 << (n - first).min(MAX_ROWS).ilog2());
            let mut out: Vec<_> = out[first..end].iter_mut().map(|row| &mut row[columns.clone()]).collect();
            dots_of_rows(blocks, row_bytes, x, first..end, &mut out);
            first = end;
        }
    }
}

/// [`dots`] of some rows of the weight at a time, dequantised.
fn dots_of_dequantized(format: BlockFormat, blocks: &[u8], row_bytes: usize, x: &[f32], out: &mut [&mut [f32]]) {
    const ROWS: usize = 16;
    let k = row_bytes / format.bytes() * format.elements();
    let mut wide = vec![0f32; ROWS * k];
    for (part, blocks) in blocks.chunks(ROWS * row_bytes).enumerate() {
        let rows = blocks.len() / row_bytes;
        for (row, wide) in blocks.chunks_exact(row_bytes).zip(wide.chunks_exact_mut(k)) {
            dequantize_row(format, row, wide);
        }
        let mut out: Vec<_> = out.iter_mut().map(|row| &mut row[ROWS * part..ROWS * part + rows]).collect();
        matmul_few_rows(x, &wide[..rows * k], k, &mut out);
    }
}

/// [`dots`] of 1, 2 or 4 rows of activations in integers.
fn dots_of_rows(blocks: &[u8], row_bytes: usize, x: &DotInput, rows: Range<usize>, out: &mut [&mut [f32]]) {
    let (format, x) = match x {
        // SAFETY: this variant is only made if the machine has the instructions.
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code)]
        DotInput::Vnni(simd, format, x) => unsafe {
            return match &x[rows] {
                [a] => dots_vnni(*simd, *format, blocks, row_bytes, [a], out),
                [a, b] => dots_vnni(*simd, *format, blocks, row_bytes, [a, b], out),
                [a, b, c, d] => dots_vnni(*simd, *format, blocks, row_bytes, [a, b, c, d], out),
                _ => {}
            };
        },
        DotInput::Integers(format, x) => (*format, &x[rows]),
        DotInput::Floats(_) => return,
    };
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = crate::cpu::unit::avx2() {
        return simd.vectorize(Avx2Dots { simd, format, blocks, row_bytes, x, out });
    }
    crate::cpu::unit::arch().dispatch(PortableDots { format, blocks, row_bytes, x, out });
}

/// [`dots_of_rows`] without intrinsics, compiled for each instruction set.
pub(super) struct PortableDots<'a, 'b> {
    pub format: IntegerFormat,
    pub blocks: &'a [u8],
    pub row_bytes: usize,
    pub x: &'a [QuantizedActivations],
    pub out: &'a mut [&'b mut [f32]],
}

impl pulp::WithSimd for PortableDots<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        match self.x {
            [a] => self.run([a]),
            [a, b] => self.run([a, b]),
            [a, b, c, d] => self.run([a, b, c, d]),
            _ => {}
        }
    }
}

impl PortableDots<'_, '_> {
    #[inline(always)]
    fn run<const R: usize>(self, x: [&QuantizedActivations; R]) {
        for (j, row) in self.blocks.chunks_exact(self.row_bytes).enumerate() {
            let mut sums = [0f32; R];
            // One loop per format: a function passed as an argument would not be compiled for the current instruction set.
            match self.format {
                IntegerFormat::Q8_0 => {
                    for (i, block) in row.as_chunks().0.iter().enumerate() {
                        q8_0::dot(&mut sums, block, x, i);
                    }
                }
                IntegerFormat::Q4_0 => {
                    for (i, block) in row.as_chunks().0.iter().enumerate() {
                        q4_0::dot(&mut sums, block, x, i);
                    }
                }
                IntegerFormat::Q4_K => {
                    for (i, block) in row.as_chunks().0.iter().enumerate() {
                        q4_k::dot(&mut sums, block, x, i);
                    }
                }
                IntegerFormat::Q6_K => {
                    for (i, block) in row.as_chunks().0.iter().enumerate() {
                        q6_k::dot(&mut sums, block, x, i);
                    }
                }
            }
            for (out, sum) in self.out.iter_mut().zip(sums) {
                out[j] = sum;
            }
        }
    }
}

/// [`dots_of_rows`] with AVX2.
#[cfg(target_arch = "x86_64")]
pub(super) struct Avx2Dots<'a, 'b> {
    pub simd: V3,
    pub format: IntegerFormat,
    pub blocks: &'a [u8],
    pub row_bytes: usize,
    pub x: &'a [QuantizedActivations],
    pub out: &'a mut [&'b mut [f32]],
}

#[cfg(target_arch = "x86_64")]
impl pulp::NullaryFnOnce for Avx2Dots<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        match self.x {
            [a] => self.run([a]),
            [a, b] => self.run([a, b]),
            [a, b, c, d] => self.run([a, b, c, d]),
            _ => {}
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Avx2Dots<'_, '_> {
    #[inline(always)]
    fn run<const R: usize>(self, x: [&QuantizedActivations; R]) {
        for (j, row) in self.blocks.chunks_exact(self.row_bytes).enumerate() {
            let mut sums = [Accumulator::new(self.simd); R];
            match self.format {
                IntegerFormat::Q8_0 => {
                    for (i, block) in row.as_chunks().0.iter().enumerate() {
                        q8_0::x86::dot_avx2(&mut sums, block, x, i);
                    }
                }
                IntegerFormat::Q4_0 => {
                    for (i, block) in row.as_chunks().0.iter().enumerate() {
                        q4_0::x86::dot_avx2(&mut sums, block, x, i);
                    }
                }
                IntegerFormat::Q4_K => {
                    for (i, block) in row.as_chunks().0.iter().enumerate() {
                        q4_k::x86::dot_avx2(&mut sums, block, x, i);
                    }
                }
                IntegerFormat::Q6_K => {
                    for (i, block) in row.as_chunks().0.iter().enumerate() {
                        q6_k::x86::dot_avx2(&mut sums, block, x, i);
                    }
                }
            }
            for (out, sum) in self.out.iter_mut().zip(sums) {
                out[j] = sum.total();
            }
        }
    }
}

/// [`dots_of_rows`] with VNNI. The lanes of 16 sums are added at a time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
fn dots_vnni<const R: usize>(
    simd: V4,
    format: BlockFormat,
    blocks: &[u8],
    row_bytes: usize,
    x: [&vnni::VnniActivations; R],
    out: &mut [&mut [f32]],
) {
    let (m, wide) = (blocks.len() / row_bytes, 16 / R);
    for first in (0..m).step_by(wide) {
        let (count, mut sums) = (wide.min(m - first), [_mm512_setzero_ps(); 16]);
        for (j, row) in blocks[first * row_bytes..].chunks_exact(row_bytes).take(count).enumerate() {
            let products = match format {
                BlockFormat::Q8_0 => q8_0::x86::row_vnni(row, x),
                BlockFormat::Q4_0 => q4_0::x86::row_vnni(row, x),
                BlockFormat::Q4_K => q4_k::x86::row_vnni(row, x),
                BlockFormat::Q6_K => q6_k::x86::row_vnni(row, x),
                BlockFormat::Q4_1 => parts::x86::row_vnni::<Q4_1, 20, 1, R>(row, x),
                BlockFormat::Q5_0 => parts::x86::row_vnni::<Q5_0, 22, 1, R>(row, x),
                BlockFormat::Q5_1 => parts::x86::row_vnni::<Q5_1, 24, 1, R>(row, x),
                BlockFormat::Q2_K => parts::x86::row_vnni::<Q2K, 84, 8, R>(row, x),
                BlockFormat::Q3_K => parts::x86::row_vnni::<Q3K, 110, 8, R>(row, x),
                BlockFormat::Q5_K => parts::x86::row_vnni::<Q5K, 176, 8, R>(row, x),
                BlockFormat::IQ4_NL => iq4_nl::x86::row_vnni(row, x),
            };
            for r in 0..R {
                sums[r * wide + j] = products[r];
            }
        }
        let sums: [f32; 16] = pulp::cast(lane_sums(simd, &sums));
        for r in 0..R {
            out[r][first..first + count].copy_from_slice(&sums[r * wide..r * wide + count]);
        }
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
