//! Frozen weights in ggml's block formats.
//!
//! A block has 32 or 256 weights as small integers with scales, in the layout of GGUF files. Weights are quantised to Q8_0, Q4_0,
//! Q4_K and Q6_K; the other formats are read as they are, with portable code only.

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

#[cfg(test)]
mod tests {
    use candle_core::quantized::QTensor;
    use candle_core::{Result, Tensor};

    use super::activations::QuantizedActivations;
    use super::bits::f16_to_f32;
    use super::dots::portable_dots;
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
            dots(format, w.blocks(), w.row_bytes(), &DotInput::new(&values, format), &mut chosen);
            let mut avx2 = chosen.clone();
            #[cfg(target_arch = "x86_64")]
            if let (Some(simd), Some(format)) = (pulp::x86::V3::try_new(), super::vnni::X86Format::of(format)) {
                let (blocks, row_bytes) = (w.blocks(), w.row_bytes());
                simd.vectorize(super::dots::QuantizedDots { simd, format, blocks, row_bytes, x: &x, y: &mut avx2 });
            }
            portable_dots(format, w.blocks(), w.row_bytes(), &x, &mut portable);
            let scale = portable.iter().fold(0f32, |a, b| a.max(b.abs()));
            assert!(scale > 0.1, "{format:?}: {portable:?}");
            for (a, b) in chosen.iter().chain(&avx2).zip(portable.iter().chain(&portable)) {
                assert!((a - b).abs() < 1e-5 * scale, "{format:?}: {a} and {b}");
            }
            // The product of the dequantised weight with the dequantised activations, in f64.
            let wide = flat(&w.dequantize().unwrap());
            for (row, ours) in wide.chunks(cols).zip(&portable) {
                let products = row.iter().enumerate().map(|(i, &w)| {
                    let (block, l) = (i / 32, i % 32);
                    f64::from(w) * f64::from(x.scales[block]) * f64::from(x.integers[block][l])
                });
                let exact = products.sum::<f64>();
                assert!((exact - f64::from(*ours)).abs() < 1e-5 * f64::from(scale), "{format:?}: {ours}, not {exact}");
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
