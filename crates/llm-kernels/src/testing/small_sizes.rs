//! A test of sizes 0, 1 and 2 in every dimension of every function: the result has the right shape and gradients, or
//! it is an error; nothing panics or hangs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use candle_core::{DType, Device, Result, Tensor, Var};

use crate::testing::random;
use crate::{
    Activation, AdamWStep, AttentionBlock, AttentionMask, AttentionParams, BlockFormat, DistillationOptions,
    Divergence, HeadInputs, IGNORE_INDEX, MappedWeight, MlpBlock, Norm, Precision, Projection, QuantizedWeight,
    RecomputedGradients, RotaryFrequencies, TeacherLogits, activate, adamw_step, attention, attention_block,
    attention_weights, cross_entropy, gated_activation, kl_divergence, layer_norm, linear, linear_cross_entropy,
    linear_distillation, linear_mapped, linear_quantized, linear_reshaped, linear_residual, linear_with_precision,
    mlp_block, recompute, replace_rows, rms_norm, rope, sum_of_squares, token_logprobs, token_logprobs_and_entropies,
};
use llm_files::Bytes;

/// All combinations of `N` sizes.
fn sizes<const N: usize>(of: [usize; 3]) -> impl Iterator<Item = [usize; N]> {
    (0..3usize.pow(N as u32)).map(move |i| std::array::from_fn(|at| of[i / 3usize.pow(at as u32) % 3]))
}

const SMALL: [usize; 3] = [0, 1, 2];

/// Runs a function on tensors of the given shapes, and its backward. `expected` is the shape of the result.
fn check(name: &str, shapes: &[&[usize]], expected: &[usize], run: impl Fn(&[Tensor]) -> Result<Tensor>) {
    for dtype in [DType::F32, DType::F64] {
        let what = format!("{name} {dtype:?} {shapes:?}");
        let all = catch_unwind(AssertUnwindSafe(|| -> Result<()> {
            let vars = shapes.iter().enumerate().map(|(i, shape)| {
                // candle cannot make a random variable without elements, so it is made from a tensor.
                Var::from_tensor(&random(shape, i as u64 + 1, 1.)?.to_dtype(dtype)?)
            });
            let vars = vars.collect::<Result<Vec<_>>>()?;
            let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
            let y = run(&tensors)?;
            assert_eq!(y.dims(), expected, "{what}");
            let grads = y.flatten_all()?.sum(0)?.backward()?;
            for (var, shape) in vars.iter().zip(shapes) {
                assert!(
                    grads.get(var).is_none_or(|grad| grad.dims() == *shape),
                    "{what}: a gradient has another shape"
                );
            }
            Ok(())
        }));
        match all {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                // An error is allowed only if a shape is empty.
                assert!(shapes.iter().any(|shape| shape.contains(&0)), "{what}: {error}");
            }
            Err(panic) => panic!("{what} panics: {:?}", panic.downcast_ref::<String>()),
        }
    }
}

/// Runs a function that returns no tensor.
fn check_plain(what: &str, empty: bool, run: impl FnOnce() -> Result<()>) {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => assert!(empty, "{what}: {error}"),
        Err(panic) => panic!("{what} panics: {:?}", panic.downcast_ref::<String>()),
    }
}

fn elementwise_and_norms() {
    for [a, b] in sizes(SMALL) {
        for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
            check("activate", &[&[a, b]], &[a, b], |t| activate(&t[0], activation));
            check("gated_activation", &[&[a, b], &[a, b]], &[a, b], |t| gated_activation(&t[0], &t[1], activation));
        }
        check("rms_norm", &[&[a, b], &[b]], &[a, b], |t| rms_norm(&t[0], &t[1], 1e-5));
        check("layer_norm", &[&[a, b], &[b], &[b]], &[a, b], |t| layer_norm(&t[0], &t[1], &t[2], 1e-5));
        check("recompute", &[&[a, b]], &[a, b], |t| {
            recompute(&t[0], Vec::new(), &RecomputedGradients::default(), |x| x * 2.)
        });
        let replaced = usize::from(a > 0);
        check("replace_rows", &[&[a, b], &[replaced, b]], &[a, b], |t| replace_rows(&t[0], &[0][..replaced], &t[1]));
        check_plain(&format!("adamw_step, sum_of_squares {a} {b}"), a * b == 0, || {
            let (weight, grad) = (random(&[a, b], 1, 1.)?, random(&[a, b], 2, 1.)?);
            let moments = Tensor::zeros((2, a * b), DType::F32, &Device::Cpu)?;
            let (learning_rate, beta1, beta2, eps) = (0.1, 0.9, 0.9, 1e-8);
            let step = AdamWStep { learning_rate, beta1, beta2, eps, weight_decay: 0., step: 1, gradient_scale: 1. };
            adamw_step(&weight, &grad, &moments, &step)?;
            sum_of_squares(&weight)?;
            sum_of_squares(&weight.to_dtype(DType::F64)?).map(drop)
        });
    }
}

fn losses() {
    for [n, vocab] in sizes(SMALL) {
        let labels = vec![if vocab == 0 { IGNORE_INDEX } else { vocab as i64 - 1 }; n];
        check("cross_entropy", &[&[n, vocab]], &[n], |t| cross_entropy(&t[0], &labels));
        let ids = vec![vocab.saturating_sub(1) as u32; n];
        check("token_logprobs", &[&[n, vocab]], &[n], |t| token_logprobs(&t[0], &ids, 0.5));
        check("token_logprobs_and_entropies", &[&[n, vocab]], &[n], |t| {
            let (logprobs, entropies) = token_logprobs_and_entropies(&t[0], &ids, 0.5)?;
            assert_eq!(entropies.dims(), [n]);
            logprobs + entropies
        });
        check("kl_divergence", &[&[n, vocab], &[n, vocab]], &[n], |t| kl_divergence(&t[0], &t[1], 2.));
        for [k, other] in sizes(SMALL) {
            for precision in [Precision::F32, Precision::Bf16] {
                check("linear_cross_entropy", &[&[n, k], &[vocab, k]], &[], |t| {
                    linear_cross_entropy(&t[0], &t[1], &labels, precision)
                });
                let shapes: [&[usize]; 4] = [&[n, k], &[vocab, k], &[n, other], &[vocab, other]];
                check("linear_distillation", &shapes, &[], |t| {
                    let output = |hidden_states, weight| HeadInputs { hidden_states, weight, precision };
                    let divergence = Divergence::Jsd(0.3);
                    let options = DistillationOptions { alpha: 0.5, temperature: 2., divergence, vocab };
                    let teacher = TeacherLogits::Head(output(&t[2], &t[3]));
                    Ok(linear_distillation(output(&t[0], &t[1]), teacher, &labels, &options)?.loss)
                });
            }
        }
    }
}

fn linears() {
    for [n, k, m] in sizes(SMALL).chain(sizes([0, 1, 5]).filter(|&[n, _, _]| n == 5)) {
        for precision in [Precision::F32, Precision::Bf16] {
            check("linear", &[&[n, k], &[m, k]], &[n, m], |t| linear(&t[0], &t[1]));
            check("linear_with_precision", &[&[2, n, k], &[m, k]], &[2, n, m], |t| {
                linear_with_precision(&t[0], &t[1], precision)
            });
            check("linear_reshaped", &[&[n, k], &[m, k]], &[m, n], |t| {
                linear_reshaped(&t[0], &t[1], &[m, n], precision)
            });
            check("linear_residual", &[&[n, k], &[m, k], &[n, m]], &[n, m], |t| {
                linear_residual(&t[0], &t[1], &t[2], precision)
            });
            check("mlp_block", &[&[n, k], &[k], &[m, k], &[m, k], &[k, m]], &[n, k], |t| {
                let weights = [2, 3, 4].map(|i| Projection::dense(&t[i], precision));
                let mlp = MlpBlock::gated(weights, Activation::Silu);
                assert_eq!(mlp_block(&t[0], &mlp)?.dims(), [n, k]);
                let norm = Some(Norm::Rms { weight: t[1].clone(), eps: 1e-5 });
                mlp_block(&t[0], &MlpBlock { norm, residual: Some(&t[0]), ..mlp })
            });
        }
        let x = |t: &[Tensor]| t[0].to_dtype(DType::F32);
        check("a weight in bf16", &[&[n, k], &[m, k]], &[n, m], |t| {
            linear(&x(t)?, &t[1].detach().to_dtype(DType::BF16)?)
        });
        for (dtype, size) in [(DType::F32, 4), (DType::BF16, 2), (DType::F16, 2)] {
            check("linear_mapped", &[&[n, k]], &[n, m], |t| {
                let w = MappedWeight::new(Bytes::from(vec![0; m * k * size]), (m, k), dtype)?;
                assert_eq!((w.to_tensor()?.dims(), w.slice_rows(0..m)?.shape()), (&[m, k][..], (m, k)));
                assert_eq!(
                    (w.slice_rows(m..m)?.to_tensor()?.dims(), w.gather_rows(&[])?.dims()),
                    (&[0, k][..], &[0, k][..])
                );
                assert_eq!(w.gather_rows(&vec![0; m])?.dims(), [m, k]);
                linear_mapped(&x(t)?, &w)
            });
        }
        for format in BlockFormat::ALL {
            let wide = k * format.elements();
            check("linear_quantized", &[&[n, wide]], &[n, m], |t| {
                let w = QuantizedWeight::from_blocks(vec![0; m * k * format.bytes()], (m, wide), format)?;
                assert_eq!((w.dequantize()?.dims(), w.gather_rows(&[])?.dims()), (&[m, wide][..], &[0, wide][..]));
                assert_eq!(w.gather_rows(&vec![0; m])?.dims(), [m, wide]);
                if format != BlockFormat::IQ4_NL {
                    assert_eq!(QuantizedWeight::quantize(&w.dequantize()?, format)?.blocks().len(), w.blocks().len());
                }
                linear_quantized(&x(t)?, &w)
            });
        }
    }
}

fn attentions() {
    for [b, t, s, h, g, d] in sizes(SMALL) {
        let (soft_cap, shape) = (Some(2.), [b, t, h, d]);
        for params in [
            AttentionParams::for_head_dim(d),
            AttentionParams { soft_cap, precision: Precision::Bf16, ..AttentionParams::for_head_dim(d) },
        ] {
            // Invalid arguments are errors even if no shape is empty.
            if t > s || g == 0 || h % g != 0 {
                let x = |s: usize, h: usize| Tensor::zeros((b, s, h, d), DType::F32, &Device::Cpu).unwrap();
                assert!(attention(&x(t, h), &x(s, g), &x(s, g), params, &AttentionMask::default()).is_err());
                continue;
            }
            let shapes: [&[usize]; 3] = [&shape, &[b, s, g, d], &[b, s, g, d]];
            let masked_keys = Some(vec![(0, s as u32); b].into());
            let hidden = AttentionMask { masked_keys, ..AttentionMask::default() };
            for mask in [AttentionMask::default(), AttentionMask::from_window_starts(vec![1; b * t]), hidden] {
                check("attention", &shapes, &shape, |x| attention(&x[0], &x[1], &x[2], params, &mask));
                check("attention_weights", &shapes[..2], &[b, h, t, s], |x| {
                    attention_weights(&x[0], &x[1], params, &mask)
                });
            }
        }
    }
    for [b, h, d] in sizes(SMALL) {
        for (t, rotary) in [0, 1, 2, 5].into_iter().flat_map(|t| [0, 1, 2].map(|rotary| (t, rotary))) {
            let positions: Vec<u32> = (0..b * t).map(|i| i as u32).collect();
            let rotation = RotaryFrequencies::new(rotary, 1e4).table(&positions);
            if rotary / 2 * 2 <= d {
                check("rope", &[&[b, t, h, d]], &[b, t, h, d], |x| rope(&x[0], &rotation));
            }
            for ([hidden, g], precision) in sizes(SMALL).zip([Precision::F32, Precision::Bf16].into_iter().cycle()) {
                if rotary / 2 * 2 > d || g == 0 || h % g != 0 {
                    continue;
                }
                let (q, k, o) = ([h * d, hidden], [g * d, hidden], [hidden, h * d]);
                let shapes: [&[usize]; 6] = [&[b, t, hidden], &[hidden], &q, &k, &k, &o];
                check("attention_block", &shapes, &[b, t, hidden], |x| {
                    let weights = [2, 3, 4, 5].map(|i| Projection::dense(&x[i], precision));
                    let params = AttentionParams { precision, ..AttentionParams::for_head_dim(d) };
                    let norm = Some(Norm::Rms { weight: x[1].clone(), eps: 1e-5 });
                    let (rotary, mask) = (Some(&rotation), AttentionMask::default());
                    let block = AttentionBlock { norm, rotary, ..AttentionBlock::new(weights, d, params, &mask) };
                    attention_block(&x[0], &block, None)
                });
            }
        }
    }
}

#[test]
fn small_sizes_give_a_result_or_an_error() {
    let (done, wait) = std::sync::mpsc::channel();
    let parts = [elementwise_and_norms, losses, linears, attentions];
    let threads = parts.map(|part| {
        let done = done.clone();
        std::thread::spawn(move || {
            let end = catch_unwind(part);
            done.send(()).unwrap();
            end
        })
    });
    for _ in &threads {
        wait.recv_timeout(Duration::from_mins(5)).expect("a function hangs");
    }
    for thread in threads {
        if let Err(panic) = thread.join().unwrap() {
            std::panic::resume_unwind(panic);
        }
    }
}
