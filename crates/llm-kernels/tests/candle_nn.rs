//! The operations agree with those of candle-nn, forward and gradient: an oracle that this workspace did not write.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use candle_core::{D, Device, Result, Tensor, Var};
use candle_nn::Module;
use llm_kernels::{Activation, RotaryFrequencies, activate, cross_entropy, layer_norm, rms_norm, rope, token_logprobs};

const EPS: f64 = 1e-5;

/// Numbers between -2 and 2 that do not repeat within a tensor.
fn numbers(shape: &[usize], seed: usize) -> Tensor {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|i| 2. * ((i * 7 + seed * 13) as f32 * 0.37).sin()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Compares two functions of one tensor: their results, and the gradients of a weighted sum of them.
fn compare(
    name: &str,
    x: &Tensor,
    ours: impl Fn(&Tensor) -> Result<Tensor>,
    theirs: impl Fn(&Tensor) -> Result<Tensor>,
) {
    let x = Var::from_tensor(x).unwrap();
    let (a, b) = (ours(&x).unwrap(), theirs(&x).unwrap());
    let gradient = |y: &Tensor| {
        let weights = numbers(y.dims(), 5);
        (y * weights).unwrap().sum_all().unwrap().backward().unwrap().get(&x).unwrap().clone()
    };
    for (what, a, b) in [("result", &a, &b), ("gradient", &gradient(&a), &gradient(&b))] {
        let difference = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        let difference = difference.to_scalar::<f32>().unwrap();
        assert!(difference < 2e-5, "{name}: the {what} differs by {difference}");
    }
}

#[test]
fn norms_agree_with_those_of_candle_nn() {
    let x = numbers(&[3, 5, 32], 1);
    let (weight, bias) = (numbers(&[32], 2), numbers(&[32], 3));
    let rms = |x: &Tensor| candle_nn::ops::rms_norm_slow(x, &weight, EPS as f32);
    compare("rms_norm", &x, |x| rms_norm(x, &weight, EPS), rms);
    let layer = |x: &Tensor| candle_nn::ops::layer_norm_slow(x, &weight, &bias, EPS as f32);
    compare("layer_norm", &x, |x| layer_norm(x, &weight, &bias, EPS), layer);
}

#[test]
fn rotary_embeddings_agree_with_those_of_candle_nn() {
    let (b, t, h, d) = (2, 6, 3, 16);
    let frequencies = RotaryFrequencies::new(d, 10000.);
    let positions: Vec<u32> = (0..b * t).map(|i| (i % t) as u32).collect();
    let table = frequencies.table(&positions);
    let angles: Vec<f32> = (0..t)
        .flat_map(|position| frequencies.inverse_frequencies().iter().map(move |f| (position as f64 * f) as f32))
        .collect();
    let angles = Tensor::from_vec(angles, (t, d / 2), &Device::Cpu).unwrap();
    let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
    let theirs = |x: &Tensor| {
        let heads_first = x.transpose(1, 2)?.contiguous()?; // (b, h, t, d)
        candle_nn::rotary_emb::rope_slow(&heads_first, &cos, &sin)?.transpose(1, 2)
    };
    compare("rope", &numbers(&[b, t, h, d], 1), |x| rope(x, &table), theirs);
}

#[test]
fn activations_agree_with_those_of_candle_nn() {
    let x = numbers(&[4, 33], 1);
    for (ours, theirs) in [
        (Activation::Silu, candle_nn::Activation::Silu),
        (Activation::Gelu, candle_nn::Activation::Gelu),
        (Activation::GeluTanh, candle_nn::Activation::NewGelu),
    ] {
        compare(&format!("{ours:?}"), &x, |x| activate(x, ours), |x| theirs.forward(x));
    }
}

#[test]
fn losses_agree_with_those_of_candle_nn() {
    let (n, vocab) = (7, 40);
    let labels: Vec<u32> = (0..n).map(|i| (i * 11 % vocab) as u32).collect();
    let targets = Tensor::from_slice(&labels, n, &Device::Cpu).unwrap();
    let signed: Vec<i64> = labels.iter().map(|&label| i64::from(label)).collect();
    let logits = numbers(&[n, vocab], 1);
    let ours = |x: &Tensor| cross_entropy(x, &signed)?.mean_all();
    compare("cross_entropy", &logits, ours, |x| candle_nn::loss::cross_entropy(x, &targets));
    let theirs = |x: &Tensor| candle_nn::ops::log_softmax(x, D::Minus1)?.gather(&targets.unsqueeze(1)?, 1)?.squeeze(1);
    compare("token_logprobs", &logits, |x| token_logprobs(x, &labels, 1.), theirs);
}
