//! Micro-batches, the models that a run must not change, and the data order.

use std::collections::BTreeMap;

use candle_core::DType;

use super::*;

fn weights(dir: &Path) -> BTreeMap<String, Vec<f64>> {
    let model = Model::load(dir).unwrap();
    let flat = |t: &candle_core::Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    model.params().tensors().iter().map(|(name, tensor)| (name.clone(), flat(tensor))).collect()
}

/// (largest, mean) difference of the changes of all weights, relative to the largest change.
fn residual(start: &Path, one: &Path, other: &Path) -> (f64, f64) {
    let [start, one, other] = [start, one, other].map(weights);
    let (mut largest, mut worst, mut sum, mut count) = (0f64, 0f64, 0., 0.);
    for (name, start) in &start {
        for ((start, one), other) in start.iter().zip(&one[name]).zip(&other[name]) {
            largest = largest.max((one - start).abs());
            worst = worst.max((one - other).abs());
            sum += one - other;
            count += 1.;
        }
    }
    (worst / largest, (sum / count).abs() / largest)
}

/// An epsilon that is large against the gradients makes the step of AdamW proportional to the gradient.
fn proportional() -> OptimizerConfig {
    OptimizerConfig { eps: 9., learning_rate: 1., ..optimizer(1.) }
}

#[test]
fn micro_batches_have_the_gradient_of_the_whole_batch() {
    let world = World::new();
    // With the reference ahead of the policy, so that the gradients of the pairs differ in size.
    for loss in LOSSES {
        let run = |batch_size: usize, gradient_accumulation_steps: u64| {
            let name = format!("{loss:?}-{batch_size}");
            let recipe = DpoRecipe {
                batch_size,
                gradient_accumulation_steps,
                beta: 1.,
                nll_weight: if loss == PairLoss::Orpo { 0. } else { 0.2 },
                optimizer: proportional(),
                ..recipe(loss, 2)
            };
            assert_eq!(world.dpo(&recipe, &name).steps, 2);
            name
        };
        let whole = run(8, 1);
        for (size, micro) in [(2, 4), (1, 8)] {
            let parts = run(size, micro);
            for metric in ["loss", "grad_norm", "rewards/margins", "logps/chosen"] {
                let (a, b) = (world.metrics(&whole, metric), world.metrics(&parts, metric));
                assert!(a.iter().zip(&b).all(|(a, b)| near(*a, *b, 1e-5)), "{loss:?} {metric}: {a:?} {b:?}");
            }
            let [start, whole, parts] = ["model", &whole, &parts].map(|name| world.path(name));
            let (worst, mean) = residual(&start, &whole, &parts);
            assert!(worst < 1e-4 && mean < 1e-5, "{loss:?}, {size} x {micro}: {worst} {mean}");
        }
    }
}

/// Also `z0` is that of the whole step.
#[test]
fn micro_batches_of_kto_have_the_gradient_of_the_whole_batch() {
    let world = World::new();
    let run = |batch_size: usize, gradient_accumulation_steps: u64| {
        let name = format!("kto-{batch_size}");
        let recipe = KtoRecipe {
            batch_size,
            gradient_accumulation_steps,
            beta: 1.,
            undesirable_weight: 0.5,
            optimizer: proportional(),
            ..kto_recipe(2)
        };
        assert_eq!(world.kto(&recipe, &name).steps, 2);
        name
    };
    // The order of the answers decides how they are mismatched, so z0 and with it the second step agree only where z0 is 0: the first.
    let (whole, parts) = (run(16, 1), run(4, 4));
    for metric in ["loss", "grad_norm", "logps/chosen", "logps/rejected"] {
        let (a, b) = (world.metrics(&whole, metric)[0], world.metrics(&parts, metric)[0]);
        assert!(near(a, b, 1e-5), "{metric}: {a} {b}");
    }
}

/// A pair of one micro-batch weighs as much as each pair of a larger one: 3 pairs in micro-batches of 2.
#[test]
fn pairs_of_uneven_micro_batches_have_the_same_weight() {
    let world = World::new();
    world.write("pairs.jsonl", &PAIRS[..3]);
    let run = |batch_size: usize, gradient_accumulation_steps: u64| {
        let name = format!("run-{batch_size}");
        let recipe = DpoRecipe { batch_size, gradient_accumulation_steps, ..recipe(PairLoss::Orpo, 1) };
        world.dpo(&recipe, &name);
        ["loss", "grad_norm"].map(|metric| world.metrics(&name, metric)[0])
    };
    let (whole, parts) = (run(3, 1), run(2, 2));
    assert!(near(whole[0], parts[0], 1e-5) && near(whole[1], parts[1], 1e-5), "{whole:?} {parts:?}");
}

#[test]
fn only_the_policy_changes() {
    let world = World::new();
    let before = fs::read(world.path("model/model.safetensors")).unwrap();
    world.dpo(&recipe(PairLoss::Sigmoid, 3), "run");
    assert_eq!(fs::read(world.path("model/model.safetensors")).unwrap(), before);
    assert_ne!(fs::read(world.path("run/model.safetensors")).unwrap(), before);
    // The same seed gives the same bytes; another order of the pairs gives others.
    let small = |seed| DpoRecipe { batch_size: 2, seed, ..recipe(PairLoss::Sigmoid, 2) };
    for (name, seed) in [("a", 1), ("b", 1), ("c", 2)] {
        world.dpo(&small(seed), name);
    }
    let bytes = |name: &str| fs::read(world.path(name).join("model.safetensors")).unwrap();
    assert!(bytes("a") == bytes("b") && bytes("a") != bytes("c"));
}
