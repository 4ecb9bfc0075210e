//! The losses against TRL's `GRPOTrainer` and `RLOOTrainer` (`tests/golden/make_grpo.py`).

use candle_core::{Device, Tensor, Var};
use llm_train::loss::{ClipRange, LossType, grpo_loss, rloo_loss, token_weights};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    max_new_tokens: usize,
    epsilon: f64,
    epsilon_high: f64,
    advantages: Vec<f64>,
    logprobs: Vec<Vec<f64>>,
    old_logprobs: Vec<Vec<f64>>,
    ref_logprobs: Vec<Vec<f64>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    loss_type: LossType,
    beta: f64,
    loss: f64,
    gradient: Vec<Vec<f64>>,
    metrics: serde_json::Map<String, serde_json::Value>,
}

fn tensor(data: &[f64]) -> Tensor {
    Tensor::new(data, &Device::Cpu).unwrap()
}

/// Each number once for each token of its reply.
fn repeated(numbers: &[f64], lengths: &[usize]) -> Tensor {
    let each = numbers.iter().zip(lengths).flat_map(|(x, n)| std::iter::repeat_n(*x, *n));
    tensor(&each.collect::<Vec<f64>>())
}

#[test]
fn losses_gradients_and_clip_ratios_are_those_of_trl() {
    let golden: Golden = serde_json::from_str(include_str!("../golden/grpo.json")).unwrap();
    let lengths: Vec<usize> = golden.logprobs.iter().map(Vec::len).collect();
    let tokens = lengths.iter().sum::<usize>() as f64;
    let clip = ClipRange { low: golden.epsilon, high: golden.epsilon_high };
    let (old, reference) = (tensor(&golden.old_logprobs.concat()), tensor(&golden.ref_logprobs.concat()));
    assert_eq!(golden.cases.len(), 7);
    for case in golden.cases {
        let name = format!("{:?}, beta {}", case.loss_type, case.beta);
        let logprobs = Var::from_tensor(&tensor(&golden.logprobs.concat())).unwrap();
        let weights = token_weights(case.loss_type, &lengths, golden.max_new_tokens);
        let found = if case.loss_type == LossType::Rloo {
            rloo_loss(&logprobs, &old, &lengths, &tensor(&golden.advantages), &tensor(&weights), clip).unwrap()
        } else {
            let (advantages, weights) = (repeated(&golden.advantages, &lengths), repeated(&weights, &lengths));
            let penalty = (case.beta > 0.).then_some((&reference, case.beta));
            grpo_loss(&logprobs, &old, &advantages, &weights, clip, penalty).unwrap()
        };
        let loss = found.loss.to_scalar::<f64>().unwrap();
        assert!((loss - case.loss).abs() < 1e-9, "{name}: {loss} is not {}", case.loss);
        let gradient = found.loss.backward().unwrap().get(&logprobs).unwrap().to_vec1::<f64>().unwrap();
        let far = gradient.iter().zip(case.gradient.concat()).map(|(a, b)| (a - b).abs()).fold(0., f64::max);
        assert!(far < 1e-9, "{name}: {far}");
        let ratios = if case.loss_type == LossType::Rloo { lengths.len() as f64 } else { tokens };
        let logged = |name: &str| case.metrics[name].as_f64().unwrap();
        assert!((found.low_clipped / ratios - logged("clip_ratio/low_mean")).abs() < 1e-6, "{name}");
        assert!((found.high_clipped / ratios - logged("clip_ratio/high_mean")).abs() < 1e-6, "{name}");
        assert!(found.low_clipped + found.high_clipped > 0., "{name}: nothing is clipped");
        if case.beta > 0. {
            assert!((found.kl_sum / tokens - logged("kl")).abs() < 1e-6, "{name}");
        }
    }
}
