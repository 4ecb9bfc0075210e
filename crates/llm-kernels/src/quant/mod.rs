//! Frozen weights in ggml's block formats.
//!
//! A block has 32 or 256 weights as small integers with scales, in the layout of GGUF files. Weights are quantised to Q8_0, Q4_0,
//! Q4_K and Q6_K; the other formats are read as they are.

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod bits;
mod dots;
mod iq4_nl;
mod parts;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
#[cfg(target_arch = "x86_64")]
mod vnni;
mod weight;

pub(crate) use dots::{DotInput, dots};
pub use llm_files::BlockFormat;
pub use weight::QuantizedWeight;

/// The formats with code for every instruction set. The others have code for AVX-512 with VNNI; without it, weights in them are
/// dequantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "ggml's names")]
pub(crate) enum IntegerFormat {
    Q8_0,
    Q4_0,
    Q4_K,
    Q6_K,
}

impl IntegerFormat {
    fn of(format: BlockFormat) -> Option<Self> {
        match format {
            BlockFormat::Q8_0 => Some(Self::Q8_0),
            BlockFormat::Q4_0 => Some(Self::Q4_0),
            BlockFormat::Q4_K => Some(Self::Q4_K),
            BlockFormat::Q6_K => Some(Self::Q6_K),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::QTensor;
    use candle_core::{Result, Tensor};

    use super::activations::QuantizedActivations;
    use super::bits::f16_to_f32;
    use super::dots::PortableDots;
    use super::*;
    use crate::testing::random;

    fn flat(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn f16_conversion_equals_the_half_crate() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(&bits.to_le_bytes(), 0), half::f16::from_bits(bits).to_f32());
            assert!(ours == theirs || ours.is_nan() && theirs.is_nan(), "{bits:x}: {ours} is not {theirs}");
        }
    }

    #[test]
    fn dequantization_equals_candle() -> Result<()> {
        for format in BlockFormat::ALL {
            for scale in [1., 1e-3, 50.] {
                let w = random(&[5, 512], 1, scale)?;
                let Some(dtype) = super::weight::ggml_dtype(format) else { continue };
                let theirs = QTensor::quantize(&w, dtype)?.dequantize(&candle_core::Device::Cpu)?;
                let ours = QuantizedWeight::quantize(&w, format)?;
                let near = |a: &f32, b: &f32| (a - b).abs() <= 1e-6 * scale as f32;
                assert!(flat(&ours.dequantize()?).iter().zip(&flat(&theirs)).all(|(a, b)| near(a, b)), "{format:?}");
                let picked = flat(&ours.gather_rows(&[4, 0])?);
                assert_eq!(picked[..512], flat(&ours.dequantize()?)[4 * 512..]);
                assert!(ours.gather_rows(&[5]).is_err());
            }
        }
        Ok(())
    }

    /// The bytes of a block that are not scales in f16.
    fn integers(format: BlockFormat) -> std::ops::Range<usize> {
        match format {
            BlockFormat::Q8_0 | BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::IQ4_NL => 2..format.bytes(),
            BlockFormat::Q4_K | BlockFormat::Q4_1 | BlockFormat::Q5_1 | BlockFormat::Q5_K => 4..format.bytes(),
            BlockFormat::Q6_K => 0..208,
            BlockFormat::Q2_K => 0..80,
            BlockFormat::Q3_K => 0..108,
        }
    }

    /// Random blocks; scales are those of a random weight, all other bits are random, as a file may have them.
    fn random_blocks(rows: usize, cols: usize, format: BlockFormat) -> QuantizedWeight {
        let w = crate::testing::quantized(rows, cols, 1, 1., format).unwrap();
        let mut blocks = w.blocks().to_vec();
        let noise = flat(&random(&[blocks.len()], 2, 128.).unwrap());
        for (block, noise) in blocks.chunks_mut(format.bytes()).zip(noise.chunks(format.bytes())) {
            for i in integers(format) {
                block[i] = noise[i].round().clamp(-128., 127.) as i8 as u8;
            }
        }
        QuantizedWeight::from_blocks(blocks, (rows, cols), format).unwrap()
    }

    /// The portable loops and those for AVX2, if the machine has it, on random blocks.
    #[test]
    fn all_implementations_give_the_same_result() {
        for format in BlockFormat::ALL {
            let (rows, cols) = (9, if format.elements() == 32 { 544 } else { 512 });
            let w = random_blocks(rows, cols, format);
            let values = flat(&random(&[cols], 3, 5.).unwrap());
            let x = QuantizedActivations::quantize(&values);
            let (mut chosen, mut portable) = (vec![0f32; rows], vec![0f32; rows]);
            let (blocks, row_bytes, wide) = (w.blocks(), w.row_bytes(), flat(&w.dequantize().unwrap()));
            dots(format, blocks, row_bytes, &DotInput::new(&values, cols, format), &mut [&mut chosen]);
            // The sums in f64 of the dequantised weight with the activations, and of the sizes of the products.
            let exact = |row: &[f32], x: &dyn Fn(usize) -> f64| {
                let products = row.iter().enumerate().map(|(i, &w)| f64::from(w) * x(i));
                products.fold((0., 0.), |(sum, sizes), x| (sum + x, sizes + x.abs()))
            };
            let dequantized = |i: usize| f64::from(x.scales[i / 32]) * f64::from(x.integers[i / 32][i % 32]);
            let Some(format) = IntegerFormat::of(format) else {
                let floats = matches!(DotInput::new(&values, cols, format), DotInput::Floats(_));
                for (row, ours) in wide.chunks(cols).zip(&chosen) {
                    let plain = |i: usize| f64::from(values[i]);
                    let (exact, sizes) = exact(row, if floats { &plain } else { &dequantized });
                    assert!((exact - f64::from(*ours)).abs() < 1e-6 * sizes, "{format:?}: {ours}, not {exact}");
                }
                continue;
            };
            let mut avx2 = chosen.clone();
            #[cfg(target_arch = "x86_64")]
            if let Some(simd) = pulp::x86::V3::try_new() {
                let (x, out) = (std::slice::from_ref(&x), &mut [&mut avx2[..]]);
                simd.vectorize(super::dots::Avx2Dots { simd, format, blocks, row_bytes, x, out });
            }
            let (parts, out) = (std::slice::from_ref(&x), &mut [&mut portable[..]]);
            crate::cpu::unit::arch().dispatch(PortableDots { format, blocks, row_bytes, x: parts, out });
            let scale = portable.iter().fold(0f32, |a, b| a.max(b.abs()));
            assert!(scale > 0.1, "{format:?}: {portable:?}");
            for (a, b) in chosen.iter().chain(&avx2).zip(portable.iter().chain(&portable)) {
                assert!((a - b).abs() < 1e-5 * scale, "{format:?}: {a} and {b}");
            }
            for (row, ours) in wide.chunks(cols).zip(&portable) {
                let exact = exact(row, &dequantized).0;
                assert!((exact - f64::from(*ours)).abs() < 1e-5 * f64::from(scale), "{format:?}: {ours}, not {exact}");
            }
        }
    }

    /// Rows of activations that are multiplied together have the bits of each row alone, with every implementation.
    #[test]
    fn the_bits_of_a_row_do_not_depend_on_the_other_rows() {
        for format in BlockFormat::ALL {
            let (rows, cols) = (37, if format.elements() == 32 { 288 } else { 512 });
            let w = random_blocks(rows, cols, format);
            let (blocks, row_bytes) = (w.blocks(), w.row_bytes());
            let values = flat(&random(&[65 * cols], 3, 5.).unwrap());
            let together = |n: usize, first: usize| {
                let mut values_of = vec![0f32; n * rows];
                let mut out: Vec<&mut [f32]> = values_of.chunks_mut(rows).collect();
                let x = DotInput::new(&values[first * cols..(first + n) * cols], cols, format);
                dots(format, blocks, row_bytes, &x, &mut out);
                values_of
            };
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let alone: Vec<f32> = (0..65).flat_map(|row| together(1, row)).collect();
            for n in 1..=65 {
                assert_eq!(bits(&together(n, 0)), bits(&alone[..n * rows]), "{format:?}, {n} rows");
            }
            // The implementations that this machine does not choose.
            let Some(format) = IntegerFormat::of(format) else { continue };
            let x: Vec<QuantizedActivations> =
                values.chunks(cols).take(4).map(QuantizedActivations::quantize).collect();
            let run = |x: &[QuantizedActivations], avx2: bool| {
                let mut values_of = vec![0f32; x.len() * rows];
                let mut out: Vec<&mut [f32]> = values_of.chunks_mut(rows).collect();
                #[cfg(target_arch = "x86_64")]
                if let (Some(simd), true) = (pulp::x86::V3::try_new(), avx2) {
                    simd.vectorize(super::dots::Avx2Dots { simd, format, blocks, row_bytes, x, out: &mut out });
                    return values_of;
                }
                pulp::Arch::Scalar.dispatch(PortableDots { format, blocks, row_bytes, x, out: &mut out });
                values_of
            };
            for (n, avx2) in [(2, false), (4, false), (2, true), (4, true)] {
                let alone: Vec<f32> = x[..n].iter().flat_map(|x| run(std::slice::from_ref(x), avx2)).collect();
                assert_eq!(bits(&run(&x[..n], avx2)), bits(&alone), "{format:?}, {n} rows, AVX2: {avx2}");
            }
        }
    }

    /// `golden/make_blocks.py` wrote random blocks with the weights that the `gguf` package reads from them.
    #[test]
    fn dequantization_equals_that_of_the_gguf_package() {
        let hex = |digits: &str| -> Vec<u8> {
            let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
            digits.as_bytes().chunks(2).map(byte).collect()
        };
        let mut lines = include_str!("golden/blocks.txt").lines();
        for format in BlockFormat::ALL {
            let line: Vec<&str> = lines.next().unwrap().split(' ').collect();
            assert_eq!(line[0], format!("{format:?}"));
            let (blocks, weights) = (hex(line[1]), hex(line[2]));
            let count = blocks.len() / format.bytes() * format.elements();
            let ours = QuantizedWeight::from_blocks(blocks, (1, count), format).unwrap();
            let theirs: Vec<f32> = weights.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            assert_eq!(flat(&ours.dequantize().unwrap()), theirs, "{format:?}");
        }
    }

    #[test]
    fn wrong_sizes_are_errors() -> Result<()> {
        assert!(QuantizedWeight::quantize(&random(&[2, 64], 1, 1.)?, BlockFormat::Q4_K).is_err());
        assert!(QuantizedWeight::from_blocks(vec![0; 33], (1, 32), BlockFormat::Q8_0).is_err());
        assert!(QuantizedWeight::from_blocks(vec![0; 34], (1, 31), BlockFormat::Q8_0).is_err());
        Ok(())
    }
}
