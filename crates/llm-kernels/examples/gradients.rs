//! Trains the queries of an attention layer by gradient descent, with fused forward and backward.
//!
//! ```sh
//! cargo run --release -p llm-kernels --example gradients
//! ```

use candle_core::{DType, Device, Error, Result, Tensor, Var};
use llm_kernels::{AttentionMask, AttentionParams, attention, cross_entropy, linear};

fn main() -> Result<()> {
    // b sequences of t tokens, h heads of size d, a vocabulary of v tokens.
    let (b, t, h, d, v) = (2, 8, 2, 16, 32);
    let random = |shape: &[usize]| {
        let values = (0..shape.iter().product::<usize>()).map(|i| ((i * 7919 % 1000) as f32 / 500. - 1.).sin());
        Tensor::from_iter(values, &Device::Cpu)?.reshape(shape)
    };
    let q = Var::from_tensor(&random(&[b, t, h, d])?)?;
    let (keys, values) = (random(&[b, t, h, d])?, random(&[b, t, h, d])?);
    let output = Var::from_tensor(&random(&[v, h * d])?)?;
    let labels: Vec<i64> = (0..b * t).map(|i| (i * 5 % v) as i64).collect();

    let mut losses = Vec::new();
    for step in 0..50 {
        let params = AttentionParams::for_head_dim(d);
        let y = attention(&q, &keys, &values, params, &AttentionMask::default())?; // (b, t, h, d)
        let logits = linear(&y.reshape((b * t, h * d))?, &output)?; // (b·t, v)
        let loss = cross_entropy(&logits, &labels)?.mean_all()?;
        let gradients = loss.backward()?;
        for var in [&q, &output] {
            let gradient = gradients.get(var).ok_or_else(|| Error::Msg("no gradient".to_owned()))?;
            var.set(&(var.as_tensor() - (gradient * 2.)?)?)?;
        }
        losses.push(loss.to_dtype(DType::F64)?.to_scalar::<f64>()?);
        if step % 10 == 0 {
            println!("step {step}: loss {:.3}", losses[step]);
        }
    }
    if losses[49] > 0.5 * losses[0] {
        return Err(Error::Msg(format!("the loss did not fall: {losses:?}")));
    }
    Ok(())
}

#[test]
fn runs() -> Result<()> {
    main()
}
