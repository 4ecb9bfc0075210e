//! Frozen weights in ggml's block formats.
//!
//! A block has 32 (Q8_0, Q4_0) or 256 (Q4_K, Q6_K) weights as small integers with scales, in the layout of GGUF files.

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod bits;
mod dots;
mod q4_0;
mod q4_k;
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
                let theirs =
                    QTensor::quantize(&w, super::weight::ggml_dtype(format))?.dequantize(&candle_core::Device::Cpu)?;
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

    /// The portable loops and those for AVX2, if the machine has it, on random blocks.
    #[test]
    fn all_implementations_give_the_same_result() {
        for format in BlockFormat::ALL {
            let (rows, cols) = (9, if matches!(format, BlockFormat::Q8_0 | BlockFormat::Q4_0) { 544 } else { 512 });
            let w = QuantizedWeight::quantize(&random(&[rows, cols], 1, 1.).unwrap(), format).unwrap();
            // Scales stay as they are; all other bits are random, as a file may have them.
            let mut blocks = w.blocks().to_vec();
            let noise = flat(&random(&[blocks.len()], 2, 128.).unwrap());
            for (block, noise) in blocks.chunks_mut(format.bytes()).zip(noise.chunks(format.bytes())) {
                let wild = match format {
                    BlockFormat::Q8_0 | BlockFormat::Q4_0 => 2..format.bytes(),
                    BlockFormat::Q4_K => 4..144,
                    BlockFormat::Q6_K => 0..208,
                };
                for i in wild {
                    block[i] = noise[i].round().clamp(-128., 127.) as i8 as u8;
                }
            }
            let w = QuantizedWeight::from_blocks(blocks, (rows, cols), format).unwrap();
            let values = flat(&random(&[cols], 3, 5.).unwrap());
            let x = QuantizedActivations::quantize(&values);
            let (mut chosen, mut portable) = (vec![0f32; rows], vec![0f32; rows]);
            dots(format, w.blocks(), w.row_bytes(), &DotInput::new(&values, format), &mut chosen);
            let mut avx2 = chosen.clone();
            #[cfg(target_arch = "x86_64")]
            if let Some(simd) = pulp::x86::V3::try_new() {
                let (blocks, row_bytes) = (w.blocks(), w.row_bytes());
                simd.vectorize(super::dots::QuantizedDots { simd, format, blocks, row_bytes, x: &x, y: &mut avx2 });
            }
            portable_dots(format, w.blocks(), w.row_bytes(), &x, &mut portable);
            let scale = portable.iter().fold(0f32, |a, b| a.max(b.abs()));
            assert!(scale > 0.1, "{format:?}: {portable:?}");
            for (a, b) in chosen.iter().chain(&avx2).zip(portable.iter().chain(&portable)) {
                assert!((a - b).abs() < 1e-5 * scale, "{format:?}: {a} and {b}");
            }
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
