//! What the losses learn: the order of the answers, and on pairs that a Bradley-Terry model ranks, the scores of that model (L7).

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

/// Every loss raises the rewards of the better answers above those of the worse ones; with exchanged answers the opposite.
#[test]
fn every_loss_learns_the_order_and_exchanged_answers_teach_the_opposite() {
    let world = World::new();
    let exchanged: Vec<Row> = PAIRS.iter().map(|&(prompt, better, worse)| (prompt, worse, better)).collect();
    for loss in LOSSES {
        let beta = if loss == PairLoss::Simpo { 2. } else { 0.1 };
        let recipe = DpoRecipe { beta, optimizer: optimizer(1e-2), ..recipe(loss, 12) };
        // All pairs are validation pairs too: what is learnt, not what carries over.
        let run = |name: &str, data: &str| {
            let inputs = DpoInputs { data: vec![world.path(data)], ..world.inputs() };
            dpo(&recipe, &inputs, world.path(name), RunOptions::default()).unwrap();
            let margins = world.metrics(name, "rewards/margins");
            (margins[0], margins[11], world.metrics(name, "rewards/accuracies")[11])
        };
        let (first, last, accuracy) = run(&format!("{loss:?}"), "pairs.jsonl");
        assert!(last > first + 0.1 && accuracy > 0.9, "{loss:?}: {first} {last} {accuracy}");
        world.write("exchanged.jsonl", &exchanged);
        let (_, last, accuracy) = run(&format!("{loss:?}-exchanged"), "exchanged.jsonl");
        assert!(accuracy > 0.9, "{loss:?}: {last} {accuracy}");
        // The same model ranks the pairs of the file the wrong way round.
        let policy = Model::load(world.path(&format!("{loss:?}-exchanged"))).unwrap();
        let [right, wrong] = [1, 2].map(|side| {
            let pick = |row: &Row| (row.0, if side == 1 { row.1 } else { row.2 });
            world.logprobs(&policy, &PAIRS.iter().map(pick).collect::<Vec<_>>())
        });
        let per_token = |all: &[(f64, f64)]| all.iter().map(|(logprob, tokens)| logprob / tokens).sum::<f64>();
        assert!(per_token(&right) < per_token(&wrong), "{loss:?}");
    }
}

#[test]
fn kto_learns_from_labels_as_from_pairs() {
    let world = World::new();
    let recipe = KtoRecipe { optimizer: optimizer(1e-2), ..kto_recipe(12) };
    world.kto(&recipe, "pairs");
    let rows: Vec<Value> = PAIRS
        .iter()
        .flat_map(|&(prompt, better, worse)| [labelled(prompt, better, true), labelled(prompt, worse, false)])
        .collect();
    write_lines(&world.path("pairs.jsonl"), &rows);
    world.kto(&recipe, "labels");
    let bytes = |name: &str| fs::read(world.path(name).join("model.safetensors")).unwrap();
    assert!(bytes("pairs") == bytes("labels"), "the same answers in the same order");
    let margins = world.metrics("labels", "rewards/margins");
    assert!(margins[0].abs() < 1e-6 && margins[11] > 0.2, "{margins:?}");
    assert!(world.metrics("labels", "kl").iter().all(|&kl| kl >= 0.));
}

/// The answers of the Bradley-Terry model, and their scores.
const SCORED: [(&str, f64); 6] =
    [("one", 0.), ("two", 0.7), ("three", -0.6), ("four and four", 1.5), ("five", -1.4), ("six six six", 2.2)];

/// Pairs of all answers, `rounds` of each, ranked by a Bradley-Terry model with `scale` times the scores.
fn bradley_terry(rounds: usize, scale: f64, seed: u64) -> Vec<Row> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut rows = Vec::new();
    for _ in 0..rounds {
        for (i, a) in SCORED.iter().enumerate() {
            for b in &SCORED[i + 1..] {
                let wins = rng.random::<f64>() < 1. / (1. + (-scale * (a.1 - b.1)).exp());
                rows.push(if wins { ("Say a word.", a.0, b.0) } else { ("Say a word.", b.0, a.0) });
            }
        }
    }
    rows
}

/// Trains on pairs and returns (slope, largest error, accuracy) of `β · log(policy / reference)` against the scores, both centred.
fn recovered(world: &World, name: &str, rows: &[Row]) -> (f64, f64, f64) {
    world.write("pairs.jsonl", rows);
    let recipe = DpoRecipe {
        beta: 0.5,
        batch_size: 60,
        optimizer: OptimizerConfig { schedule: Schedule::Linear, beta2: 0.99, ..optimizer(4e-3) },
        ..recipe(PairLoss::Sigmoid, 8)
    };
    world.dpo(&recipe, name);
    let answers: Vec<_> = SCORED.iter().map(|(answer, _)| ("Say a word.", *answer)).collect();
    let [policy, reference] =
        [name, "model"].map(|name| world.logprobs(&Model::load(world.path(name)).unwrap(), &answers));
    let rewards: Vec<f64> = policy.iter().zip(&reference).map(|(p, r)| recipe.beta * (p.0 - r.0)).collect();
    let centred = |values: Vec<f64>| -> Vec<f64> {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        values.into_iter().map(|value| value - mean).collect()
    };
    let (rewards, scores) = (centred(rewards), centred(SCORED.iter().map(|(_, score)| *score).collect()));
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let error = rewards.iter().zip(&scores).map(|(a, b)| (a - b).abs()).fold(0., f64::max);
    let pairs: Vec<bool> = (0..6)
        .flat_map(|i| (i + 1..6).map(move |j| (i, j)))
        .map(|(i, j)| (rewards[i] > rewards[j]) == (scores[i] > scores[j]))
        .collect();
    let accuracy = pairs.iter().filter(|&&right| right).count() as f64 / pairs.len() as f64;
    (product(&rewards, &scores) / product(&scores, &scores), error, accuracy)
}

/// At the optimum of DPO the differences of `β · log(policy / reference)` are those of the scores (arXiv 2305.18290, equation 5). Random
/// ranks teach nothing, exchanged ones the opposite.
#[test]
fn dpo_on_bradley_terry_pairs_recovers_the_scores() {
    let world = World::new();
    let (slope, error, accuracy) = recovered(&world, "scores", &bradley_terry(160, 1., 1));
    // 160 comparisons of each pair: a deviation of about 0.1 for a score.
    assert!((slope - 1.).abs() < 0.15 && error < 0.4 && accuracy > 0.9, "{slope} {error} {accuracy}");
    let (slope, ..) = recovered(&world, "random", &bradley_terry(160, 0., 2));
    assert!(slope.abs() < 0.15, "{slope}");
    let (slope, _, accuracy) = recovered(&world, "exchanged", &bradley_terry(160, -1., 3));
    assert!((slope + 1.).abs() < 0.15 && accuracy < 0.1, "{slope} {accuracy}");
}
