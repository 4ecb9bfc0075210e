//! Divergences on logits: the values of TRL, and known optima (G10, L8).

use candle_core::{DType, Device, Tensor, Var};
use llm_kernels::{AdamWStep, HeadInputs, Precision, TeacherLogits, adamw_step, kl_divergence, linear_distillation};
use llm_train::loss::{self, DistillationOptions, Divergence};
use serde_json::Value;

/// A matrix of a golden file.
fn matrix(value: &Value) -> Tensor {
    let rows: Vec<Vec<f64>> = serde_json::from_value(value.clone()).unwrap();
    let shape = (rows.len(), rows[0].len());
    Tensor::from_vec(rows.concat(), shape, &Device::Cpu).unwrap()
}

fn largest(x: &Tensor) -> f64 {
    x.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap()
}

/// `GKDTrainer.generalized_jsd_loss` of TRL has the same β and no factor T². Values and gradients, in f64 and fused in f32.
#[test]
fn divergences_are_those_of_trl() {
    let golden: Value = serde_json::from_str(include_str!("../golden/gkd.json")).unwrap();
    let (student, teacher) = (matrix(&golden["student"]), matrix(&golden["teacher"]));
    let labels: Vec<i64> = serde_json::from_value(golden["labels"].clone()).unwrap();
    let vocab = student.dim(1).unwrap();
    let mut values = Vec::new();
    for case in golden["cases"].as_array().unwrap() {
        let number = |key: &str| case[key].as_f64().unwrap();
        let (beta, temperature, expected) = (number("beta"), number("temperature"), number("loss"));
        let divergence = Divergence::Jsd(beta);
        let options = DistillationOptions { alpha: 1., temperature, divergence, vocab };
        for (dtype, tolerance) in [(DType::F64, 1e-8), (DType::F32, 2e-6)] {
            let cast = |x: &Tensor| x.to_dtype(dtype).unwrap();
            let (x, eye) =
                (Var::from_tensor(&cast(&student)).unwrap(), Tensor::eye(vocab, dtype, &Device::Cpu).unwrap());
            let head = HeadInputs { hidden_states: &x, weight: &eye, precision: Precision::F32 };
            let teacher = cast(&teacher);
            let found = linear_distillation(head, TeacherLogits::Logits(&teacher), &labels, &options).unwrap();
            assert!((found.divergence - expected).abs() < tolerance, "{beta} {temperature}: {}", found.divergence);
            let gradient = found.loss.backward().unwrap().get(&x).unwrap().to_dtype(DType::F64).unwrap();
            let gradient = (gradient / (temperature * temperature)).unwrap();
            let gap = largest(&(gradient - matrix(&case["gradient"])).unwrap());
            assert!(gap < tolerance, "{beta} {temperature} {dtype:?}: {gap}");
        }
        values.push(expected);
    }
    values.sort_by(f64::total_cmp);
    assert!(values.windows(2).all(|pair| pair[1] - pair[0] > 1e-3), "the cases must differ: {values:?}");
}

/// Minimises `f` by Adam with a linear learning rate.
fn minimise(parameters: &Var, steps: u64, learning_rate: f64, f: impl Fn(&Tensor) -> Tensor) {
    let moments = Tensor::zeros((2, parameters.elem_count()), DType::F32, &Device::Cpu).unwrap();
    for step in 1..=steps {
        let grads = f(parameters).backward().unwrap();
        let learning_rate = learning_rate * (1. - (step - 1) as f64 / steps as f64);
        let numbers =
            AdamWStep { learning_rate, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0., step, gradient_scale: 1. };
        adamw_step(parameters, grads.get(parameters).unwrap(), &moments, &numbers).unwrap();
    }
}

fn scalar(x: &Tensor) -> f32 {
    x.to_scalar::<f32>().unwrap()
}

#[test]
fn free_logits_converge_to_the_teachers_distribution() {
    let teacher = Tensor::randn(0f32, 2., (16, 32), &Device::Cpu).unwrap();
    let student = Var::zeros((16, 32), DType::F32, &Device::Cpu).unwrap();
    let forward = |x: &Tensor| scalar(&loss::kl_divergence(x, &teacher, 1.).unwrap());
    assert!(forward(&student) > 0.5);
    for temperature in [1., 4.] {
        minimise(&student, 600, 0.1, |x| loss::kl_divergence(x, &teacher, temperature).unwrap());
        let reverse = scalar(&kl_divergence(&teacher, &student.detach(), 1.).unwrap().mean_all().unwrap());
        assert!(forward(&student) < 1e-3 && reverse < 1e-3, "T = {temperature}: {}, {reverse}", forward(&student));
    }
}

/// Logits of a bell curve over 41 positions, with parameters mean and log width: it cannot represent two peaks.
fn bell(parameters: &Tensor) -> Tensor {
    let positions = Tensor::arange(-20f32, 21., &Device::Cpu).unwrap();
    let mean = parameters.narrow(0, 0, 1).unwrap();
    let width = parameters.narrow(0, 1, 1).unwrap().exp().unwrap();
    let x = positions.broadcast_sub(&mean).unwrap().broadcast_div(&width).unwrap();
    (x.sqr().unwrap() * -0.5).unwrap().unsqueeze(0).unwrap()
}

#[test]
fn forward_kl_covers_both_peaks_and_reverse_kl_chooses_one() {
    let peak = |at: f32| (Tensor::arange(-20f32, 21., &Device::Cpu).unwrap() - f64::from(at)).unwrap().sqr().unwrap();
    let two = ((peak(-9.) * -0.25).unwrap().exp().unwrap() + (peak(9.) * -0.25).unwrap().exp().unwrap()).unwrap();
    let teacher = (two + 1e-6).unwrap().log().unwrap().unsqueeze(0).unwrap();
    let start = || Var::new(&[6f32, 0.7], &Device::Cpu).unwrap();
    let forward = start();
    minimise(&forward, 1500, 0.05, |p| loss::kl_divergence(&bell(p), &teacher, 1.).unwrap());
    let reverse = start();
    minimise(&reverse, 1500, 0.05, |p| loss::divergence(&bell(p), &teacher, Divergence::Reverse, 1.).unwrap());
    let shape = |p: &Var| {
        let p = p.to_vec1::<f32>().unwrap();
        (p[0], p[1].exp())
    };
    let ((mean, width), (chosen, narrow)) = (shape(&forward), shape(&reverse));
    assert!(mean.abs() < 1.5 && width > 7., "forward: mean {mean}, width {width}");
    assert!((chosen.abs() - 9.).abs() < 1.5 && narrow < 3., "reverse: mean {chosen}, width {narrow}");
}
