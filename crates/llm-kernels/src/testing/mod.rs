//! Test helpers: run an operation fused in f32 and as the reference in f64, and compare results and gradients.

mod non_finite;
mod small_sizes;

use candle_core::{DType, Device, Result, Tensor, Var};

use crate::{BlockFormat, QuantizedWeight};

/// Pseudo-random values in `[-scale, scale]`, the same for the same seed.
pub fn random(shape: &[usize], seed: u64, scale: f64) -> Result<Tensor> {
    let n: usize = shape.iter().product();
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let data: Vec<f32> = (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (((state >> 11) as f64 / (1u64 << 53) as f64 * 2. - 1.) * scale) as f32
        })
        .collect();
    Tensor::from_vec(data, shape, &Device::Cpu)
}

/// A weight in blocks with values in about `[-scale, scale]`.
pub fn quantized(rows: usize, cols: usize, seed: u64, scale: f64, format: BlockFormat) -> Result<QuantizedWeight> {
    if format != BlockFormat::IQ4_NL {
        return QuantizedWeight::quantize(&random(&[rows, cols], seed, scale)?, format);
    }
    // No quantizer has this format: random indices, and a scale for the largest value 127.
    let noise = random(&[rows * cols / 32 * 18], seed, 128.)?.to_vec1::<f32>()?;
    let mut blocks: Vec<u8> = noise.into_iter().map(|x| x as i8 as u8).collect();
    for block in blocks.chunks_mut(18) {
        block[..2].copy_from_slice(&half::f16::from_f64(scale / 127.).to_le_bytes());
    }
    QuantizedWeight::from_blocks(blocks, (rows, cols), format)
}

/// Compares value and gradients of `f` in f32 (fused path) with f64 (reference).
///
/// The loss is the sum of the result times fixed random weights; `tolerance` is relative to the largest entry.
pub fn assert_matches_reference(
    inputs: &[&Tensor],
    tolerance: f64,
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    assert_matches_reference_within(inputs, tolerance, 0., f)
}

/// [`assert_matches_reference`] for results with cancellation: each entry may also be off by `absolute`.
pub fn assert_matches_reference_within(
    inputs: &[&Tensor],
    tolerance: f64,
    absolute: f64,
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    let run = |dtype: DType| -> Result<Vec<Tensor>> {
        let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(&t.to_dtype(dtype)?)).collect::<Result<_>>()?;
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let y = f(&tensors)?;
        let mask = random(y.dims(), 99, 1.)?.to_dtype(dtype)?;
        let grads = (&y * mask)?.flatten_all()?.sum(0)?.backward()?;
        let mut all = vec![y.to_dtype(DType::F64)?];
        for var in &vars {
            let Some(grad) = grads.get(var) else { candle_core::bail!("an input has no gradient") };
            all.push(grad.to_dtype(DType::F64)?);
        }
        Ok(all)
    };
    if inputs.iter().any(|x| x.elem_count() == 0) {
        // candle's reductions fail on empty tensors, so there is no reference: the fused result must only be empty
        // too.
        if crate::skip_on_reference_path("candle's reductions of empty tensors") {
            return Ok(());
        }
        return run(DType::F32).map(|all| assert_eq!(all[0].elem_count(), 0));
    }
    for (i, (fused, reference)) in run(DType::F32)?.iter().zip(run(DType::F64)?).enumerate() {
        assert_eq!(fused.dims(), reference.dims(), "shape of output {i} (0: value, then gradients)");
        let scale = reference.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?.max(1e-30);
        let difference = (fused - &reference)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?;
        assert!(
            difference <= tolerance * scale + absolute,
            "output {i} (0: value, then gradients): off by {difference:e} at scale {scale:e}"
        );
    }
    Ok(())
}
