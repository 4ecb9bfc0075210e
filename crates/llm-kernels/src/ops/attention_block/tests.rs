//! The fused block against the reference.

use std::sync::Arc;

use candle_core::{DType, Var};

use super::cpu::Inputs;
use super::*;
use crate::ops::attention::{AttentionMask, AttentionParams};
use crate::ops::norm::Norm;
use crate::ops::projection::Projection;
use crate::ops::rotary::RotaryFrequencies;
use crate::testing::{assert_matches_reference_within, random};
use crate::{BlockFormat, LoraWeights, Precision, ProjectionWeight, QuantizedWeight};

fn run(
    t: &[Tensor],
    d: usize,
    rotary: Option<&RotaryTable>,
    params: AttentionParams,
    mask: &AttentionMask,
) -> Result<Tensor> {
    let projections = [2, 3, 4, 5].map(|i| Projection::dense(&t[i], params.precision));
    let norm = Some(Norm::Rms { weight: t[1].clone(), eps: 1e-5 });
    let block = AttentionBlock { norm, rotary, ..AttentionBlock::new(projections, d, params, mask) };
    attention_block(&t[0], &block, None)
}

#[test]
fn the_fused_block_equals_the_f64_reference() -> Result<()> {
    for (b, t, h, g, d, hidden) in
        [(1, 1, 1, 1, 2, 3), (2, 9, 4, 2, 6, 10), (2, 40, 4, 2, 6, 10), (1, 130, 2, 2, 8, 33), (3, 50, 3, 1, 4, 7)]
    {
        let (x, norm) = (random(&[b, t, hidden], 1, 1.)?, random(&[hidden], 2, 1.)?);
        let weight = |rows: usize, cols: usize, seed| random(&[rows, cols], seed, 0.5);
        let (q, k) = (weight(h * d, hidden, 3)?, weight(g * d, hidden, 4)?);
        let (v, o) = (weight(g * d, hidden, 5)?, weight(hidden, h * d, 6)?);
        let inputs = [&x, &norm, &q, &k, &v, &o];
        let positions: Vec<u32> = (0..b * t).map(|token| (token % t) as u32).collect();
        let rotation =
            RotaryFrequencies::from_inverse_frequencies(vec![1.; d / 2 - usize::from(d > 4)], 1.25).table(&positions);
        // Packed documents: some rows start in the middle.
        let first: Arc<[u32]> = (0..b * t).map(|token| if token % t > t / 3 { (t / 3) as u32 } else { 0 }).collect();
        for mask in [AttentionMask::default(), AttentionMask::from_window_starts(first)] {
            // The gradient of a query with one key is exactly 0; in f32 the difference of two equal sums remains.
            for (precision, tolerance, zero) in [(Precision::F32, 5e-5, 1e-5), (Precision::Bf16, 1. / 16., 1e-4)] {
                let params = AttentionParams { precision, ..AttentionParams::for_head_dim(d) };
                assert_matches_reference_within(&inputs, tolerance, zero, |t| {
                    run(t, d, Some(&rotation), params, &mask)
                })?;
                assert_matches_reference_within(&inputs, tolerance, zero, |t| run(t, d, None, params, &mask))?;
            }
        }
    }
    Ok(())
}

/// A projection with bias and adapter from `t[first..]`: weight, bias, `a`, `b`.
fn adapted(t: &[Tensor], first: usize, precision: Precision) -> Projection<'_> {
    let lora =
        LoraWeights { a: t[first + 2].clone(), b: t[first + 3].clone(), scale: 1.5, dora_scale: None, dropout: None };
    Projection { bias: Some(&t[first + 1]), lora: vec![lora], ..Projection::dense(&t[first], precision) }
}

#[test]
fn biases_adapters_and_head_norms_equal_the_f64_reference() -> Result<()> {
    let (b, t, h, g, d, hidden, r) = (2, 40, 4, 2, 6, 10, 3);
    let rotation =
        RotaryFrequencies::new(d, 1e4).table(&(0..b * t).map(|token| (token % t) as u32).collect::<Vec<_>>());
    let mut inputs = vec![random(&[b, t, hidden], 1, 1.)?, random(&[hidden], 2, 1.)?];
    for (i, (out, input)) in [(h * d, hidden), (g * d, hidden), (g * d, hidden), (hidden, h * d)].iter().enumerate() {
        let shapes = [vec![*out, *input], vec![*out], vec![r, *input], vec![*out, r]];
        for (j, shape) in shapes.iter().enumerate() {
            inputs.push(random(shape, (10 * i + j + 3) as u64, 0.5)?);
        }
    }
    for whole in [false, true] {
        let mut inputs = inputs.clone();
        inputs.push(random(&[if whole { h * d } else { d }], 70, 1.)?);
        inputs.push(random(&[if whole { g * d } else { d }], 71, 1.)?);
        for (precision, tolerance, zero) in [(Precision::F32, 1e-4, 1e-5), (Precision::Bf16, 1. / 12., 1e-3)] {
            let params = AttentionParams { precision, ..AttentionParams::for_head_dim(d) };
            assert_matches_reference_within(&inputs.iter().collect::<Vec<_>>(), tolerance, zero, |t| {
                let norm = |i: usize| Norm::Rms { weight: t[i].clone(), eps: 1e-5 };
                let qk_norm = if whole { QkNorm::Whole } else { QkNorm::Head }(norm(18), norm(19));
                let projections = [2, 6, 10, 14].map(|first| adapted(t, first, precision));
                let mask = AttentionMask::default();
                let block = AttentionBlock::new(projections, d, params, &mask);
                let (norm, rotary) = (Some(norm(1)), Some(&rotation));
                let block = AttentionBlock { norm, rotary, qk_norm: Some(qk_norm), ..block };
                assert!(t[0].dtype() != DType::F32 || !crate::is_fused(&t[0]) || Inputs::of(&t[0], &block).is_some());
                attention_block(&t[0], &block, None)
            })?;
        }
    }
    Ok(())
}

/// The gradients of the adapters on a frozen weight in bf16 or in blocks equal those of the single operations.
#[test]
fn adapters_on_frozen_weights_equal_the_single_operations() -> Result<()> {
    let (t, d, hidden, r) = (70, 16, 32, 4);
    let x = random(&[1, t, hidden], 1, 1.)?;
    let (norm, mask) = (random(&[hidden], 2, 1.)?, AttentionMask::default());
    let weights: Vec<Tensor> = (0..4).map(|i| random(&[hidden, hidden], 3 + i, 0.3)).collect::<Result<_>>()?;
    let bf16: Vec<Tensor> = weights.iter().map(|w| w.to_dtype(DType::BF16)).collect::<Result<_>>()?;
    let blocks = |w: &Tensor| QuantizedWeight::quantize(w, BlockFormat::Q8_0);
    let blocks: Vec<QuantizedWeight> = weights.iter().map(blocks).collect::<Result<_>>()?;
    let lora: Vec<Var> = (0..8)
        .map(|i| Var::from_tensor(&random(&[[r, hidden], [hidden, r]][i % 2], 20 + i as u64, 0.3)?))
        .collect::<Result<_>>()?;
    for quantized in [false, true] {
        let precision = Precision::for_bf16_weights();
        let projection = |i: usize| {
            let weight = match quantized {
                true => ProjectionWeight::Quantized(&blocks[i]),
                false => ProjectionWeight::Dense(&bf16[i], precision),
            };
            let adapter = |i: usize| {
                let (a, b) = (lora[2 * i].as_tensor().clone(), lora[2 * i + 1].as_tensor().clone());
                LoraWeights { a, b, scale: 2., dora_scale: None, dropout: None }
            };
            // Two adapters: that of the next projection, too.
            Projection { weight, bias: None, lora: vec![adapter(i), adapter((i + 1) % 4)] }
        };
        let params = AttentionParams { precision, ..AttentionParams::for_head_dim(d) };
        let block = AttentionBlock::new([0, 1, 2, 3].map(projection), d, params, &mask);
        let block = AttentionBlock { norm: Some(Norm::Rms { weight: norm.clone(), eps: 1e-5 }), ..block };
        let (fused, single) = (attention_block(&x, &block, None)?, reference::attention_block(&x, &block, None)?);
        let grads = [&fused, &single].map(|y| (y * random(y.dims(), 9, 1.)?)?.sum_all()?.backward());
        let [fused_grads, single_grads] = grads;
        let (fused_grads, single_grads) = (fused_grads?, single_grads?);
        let near = |a: &Tensor, b: &Tensor| -> Result<()> {
            let top = |x: &Tensor| x.abs()?.max_all()?.to_scalar::<f32>();
            let (gap, scale) = (top(&(a - b)?)?, top(b)?);
            assert!(gap < scale / 24., "{gap} of {scale}, quantized: {quantized}"); // bf16 rounds by up to 1/256
            Ok(())
        };
        near(&fused, &single)?;
        for var in &lora {
            near(fused_grads.get(var).unwrap(), single_grads.get(var).unwrap())?;
        }
    }
    Ok(())
}

#[test]
fn the_backward_runs_once() -> Result<()> {
    let (x, norm) = (Var::from_tensor(&random(&[1, 66, 4], 1, 1.)?)?, random(&[4], 2, 1.)?);
    let w = random(&[4, 4], 3, 1.)?;
    let t = [x.as_tensor(), &norm, &w, &w, &w, &w].map(Clone::clone);
    let y = run(&t, 2, None, AttentionParams::for_head_dim(2), &AttentionMask::default())?.sum_all()?;
    let grads = y.backward()?;
    assert!(grads.get(&x).is_some() && grads.get(&w).is_none() && grads.get(&norm).is_none());
    assert!(y.backward().is_err() || crate::skip_on_reference_path("candle's operations keep their inputs"));
    Ok(())
}

#[test]
fn mismatched_shapes_are_errors() -> Result<()> {
    let (x, norm, w) = (random(&[1, 3, 4], 1, 1.)?, random(&[4], 2, 1.)?, random(&[4, 4], 3, 1.)?);
    let fits = [&x, &norm, &w, &w, &w, &w].map(Clone::clone);
    let run = |t: &[Tensor], d, rotation: Option<&RotaryTable>| {
        run(t, d, rotation, AttentionParams::for_head_dim(2), &AttentionMask::default())
    };
    assert!(run(&fits, 2, None).is_ok());
    assert!(run(&fits, 3, None).is_err(), "the weights have no heads of three elements");
    assert!(
        run(&fits, 2, Some(&RotaryFrequencies::new(2, 1e4).table(&[0, 1]))).is_err(),
        "two positions for three tokens"
    );
    let mut wide = fits.clone();
    wide[3] = random(&[6, 4], 3, 1.)?;
    assert!(run(&wide, 2, None).is_err(), "two query heads cannot share three key/value heads");
    Ok(())
}
