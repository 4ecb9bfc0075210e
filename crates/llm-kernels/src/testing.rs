//! What every kernel's test does: run it fused in f32 and naive in f64, and compare results and gradients.

use candle_core::{DType, Device, Result, Tensor, Var};

/// Numbers in `[-scale, scale]` that are the same for the same seed.
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

/// Checks value and gradient of `f` in f32 (the fused path) against f64 (the naive one).
///
/// The loss is the sum of the result times fixed random numbers; `tolerance` is relative to the largest entry.
pub fn assert_same_gradients(
    inputs: &[&Tensor],
    tolerance: f64,
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    assert_same_gradients_within(inputs, tolerance, 0., f)
}

/// The same where terms cancel: besides, each entry may be off by `absolute`.
pub fn assert_same_gradients_within(
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
        // candle's own reductions refuse empty tensors, so there is no oracle: the fused path must just stay empty.
        return run(DType::F32).map(|all| assert_eq!(all[0].elem_count(), 0));
    }
    for (i, (fused, naive)) in run(DType::F32)?.iter().zip(run(DType::F64)?).enumerate() {
        assert_eq!(fused.dims(), naive.dims(), "shape of output {i} (0: value, then gradients)");
        let scale = naive.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?.max(1e-30);
        let difference = (fused - &naive)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?;
        assert!(
            difference <= tolerance * scale + absolute,
            "output {i} (0: value, then gradients): off by {difference:e} at scale {scale:e}"
        );
    }
    Ok(())
}
