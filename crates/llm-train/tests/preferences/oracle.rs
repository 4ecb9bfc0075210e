//! Losses and metrics compared with the formulas of the papers in f64, on log-probabilities of another code path.

use llm_data::ReadOptions;

use super::*;

fn softplus(x: f64) -> f64 {
    x.max(0.) + (-x.abs()).exp().ln_1p()
}

/// `-log σ(x)`.
fn nls(x: f64) -> f64 {
    softplus(-x)
}

/// (log-probability, reference's log-probability, tokens) of an answer.
type Answer = (f64, f64, f64);

/// The loss of a pair.
fn expected(recipe: &DpoRecipe, (c, ref_c, len_c): Answer, (r, ref_r, len_r): Answer) -> f64 {
    let (beta, eps) = (recipe.beta, recipe.label_smoothing);
    let difference = (c - ref_c) - (r - ref_r);
    let per_token = (c - ref_c) / len_c - (r - ref_r) / len_r;
    let (mean_c, mean_r) = (c / len_c, r / len_r);
    let odds = |x: f64| x - (-x.exp()).ln_1p();
    let loss = match recipe.loss {
        PairLoss::Sigmoid => (1. - eps) * nls(beta * difference) + eps * nls(-beta * difference),
        PairLoss::SigmoidNorm => (1. - eps) * nls(beta * per_token) + eps * nls(-beta * per_token),
        PairLoss::Robust => ((1. - eps) * nls(beta * difference) - eps * nls(-beta * difference)) / (1. - 2. * eps),
        PairLoss::Hinge => (1. - beta * difference).max(0.),
        PairLoss::Ipo => (per_token - 0.5 / beta).powi(2),
        PairLoss::Orpo => -mean_c + beta * nls(odds(mean_c) - odds(mean_r)),
        PairLoss::Simpo => nls(beta * (mean_c - mean_r) - recipe.simpo_gamma),
    };
    loss - recipe.nll_weight * mean_c
}

/// The answers of (better, worse) of the validation pairs under a trained model and its reference.
fn sides(world: &World, run: &str) -> [Vec<Answer>; 2] {
    let [policy, reference] = [run, "model"].map(|name| Model::load(world.path(name)).unwrap());
    let of = |pick: &dyn Fn(&Row) -> (&'static str, &'static str)| -> Vec<Answer> {
        let answers: Vec<_> = VALIDATION.iter().map(pick).collect();
        let pairs = world.logprobs(&policy, &answers).into_iter().zip(world.logprobs(&reference, &answers));
        pairs.map(|((logprob, tokens), (reference, _))| (logprob, reference, tokens)).collect()
    };
    [of(&|row| (row.0, row.1)), of(&|row| (row.0, row.2))]
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    values.sum::<f64>() / n
}

#[test]
fn a_first_step_has_the_losses_of_a_policy_that_is_its_reference() {
    let world = World::new();
    let ln2 = std::f64::consts::LN_2;
    for (loss, expected) in [
        (PairLoss::Sigmoid, ln2),
        (PairLoss::SigmoidNorm, ln2),
        (PairLoss::Robust, ln2),
        (PairLoss::Hinge, 1.),
        (PairLoss::Ipo, 25.),
    ] {
        let name = format!("{loss:?}");
        world.dpo(&recipe(loss, 1), &name);
        let of = |metric: &str| world.metrics(&name, metric)[0];
        for (metric, expected) in [
            ("loss", expected),
            ("eval_loss", expected),
            ("rewards/chosen", 0.),
            ("rewards/rejected", 0.),
            ("rewards/margins", 0.),
            ("rewards/accuracies", 0.),
            ("eval_rewards/margins", 0.),
        ] {
            // f32 has 24 bits.
            assert!(near(of(metric), expected, 6e-8), "{name}: {metric} is {}, not {expected}", of(metric));
        }
    }
    world.kto(&kto_recipe(1), "kto");
    for (metric, expected) in [("loss", 0.5), ("kl", 0.), ("rewards/chosen", 0.), ("rewards/rejected", 0.)] {
        assert!(near(world.metrics("kto", metric)[0], expected, 6e-8), "{metric}");
    }
}

#[test]
fn losses_and_metrics_are_those_of_the_formulas() {
    let world = World::new();
    for (number, loss) in LOSSES.into_iter().enumerate() {
        let recipe = DpoRecipe {
            beta: if loss == PairLoss::Simpo { 2. } else { 0.3 },
            label_smoothing: if loss.has_label_smoothing() { 0.1 } else { 0. },
            nll_weight: if loss == PairLoss::Orpo { 0. } else { 0.05 * number as f64 },
            ..recipe(loss, 3)
        };
        let name = format!("{loss:?}");
        let outcome = world.dpo(&recipe, &name);
        let [chosen, rejected] = sides(&world, &name);
        let losses = chosen.iter().zip(&rejected).map(|(&c, &r)| expected(&recipe, c, r));
        let reward = |&(logprob, reference, tokens): &Answer| match loss.has_reference() {
            true => recipe.beta * (logprob - reference),
            false => recipe.beta * logprob / tokens,
        };
        let right = chosen.iter().zip(&rejected).map(|(c, r)| f64::from(u8::from(reward(c) > reward(r))));
        let likelier = chosen.iter().zip(&rejected).map(|(c, r)| f64::from(u8::from(c.0 > r.0)));
        for (metric, expected) in [
            ("eval_loss", mean(losses)),
            ("eval_rewards/chosen", mean(chosen.iter().map(reward))),
            ("eval_rewards/rejected", mean(rejected.iter().map(reward))),
            ("eval_rewards/accuracies", mean(right)),
            ("eval_logps/accuracies", mean(likelier)),
            ("eval_logps/chosen", mean(chosen.iter().map(|c| c.0))),
            ("eval_logps/rejected", mean(rejected.iter().map(|r| r.0))),
            ("eval_nll_loss", mean(chosen.iter().map(|c| -c.0 / c.2))),
            ("eval_length/chosen", mean(chosen.iter().map(|c| c.2))),
            ("eval_length/rejected", mean(rejected.iter().map(|r| r.2))),
        ] {
            let found = outcome.metrics[metric];
            // Sums of f32 log-probabilities of about 30 nats.
            assert!(near(found, expected, 2e-5), "{name}: {metric} is {found}, not {expected}");
        }
        let interval = ["low", "high"].map(|end| outcome.metrics[&format!("eval_rewards/accuracies_{end}")]);
        assert!(interval[0] <= outcome.metrics["eval_rewards/accuracies"], "{interval:?}");
        assert!(interval[1] >= outcome.metrics["eval_rewards/accuracies"], "{interval:?}");
    }
}

/// With two answers to two prompts there is one way to mismatch them.
#[test]
fn z0_and_the_loss_of_kto_are_those_of_the_formulas() {
    let world = World::new();
    let rows = [("Say six.", "six and six", true), ("Who is it?", "it is me", false)];
    write_lines(&world.path("validation.jsonl"), &rows.map(|(prompt, answer, label)| labelled(prompt, answer, label)));
    let recipe = KtoRecipe { beta: 0.4, desirable_weight: 1.2, undesirable_weight: 0.7, ..kto_recipe(6) };
    let outcome = world.kto(&recipe, "run");
    let [policy, reference] = ["run", "model"].map(|name| Model::load(world.path(name)).unwrap());
    let ratios = |answers: &[(&str, &str)]| -> Vec<f64> {
        let all = world.logprobs(&policy, answers).into_iter().zip(world.logprobs(&reference, answers));
        all.map(|(policy, reference)| policy.0 - reference.0).collect()
    };
    let z0 = mean(ratios(&[(rows[0].0, rows[1].1), (rows[1].0, rows[0].1)]).into_iter()).max(0.);
    let own = ratios(&[(rows[0].0, rows[0].1), (rows[1].0, rows[1].1)]);
    let sigmoid = |x: f64| 1. / (1. + (-x).exp());
    let good = recipe.desirable_weight * (1. - sigmoid(recipe.beta * (own[0] - z0)));
    let bad = recipe.undesirable_weight * (1. - sigmoid(recipe.beta * (z0 - own[1])));
    for (metric, expected) in [
        ("eval_kl", z0),
        ("eval_loss", f64::midpoint(good, bad)),
        ("eval_rewards/chosen", recipe.beta * own[0]),
        ("eval_rewards/rejected", recipe.beta * own[1]),
        ("eval_rewards/margins", recipe.beta * (own[0] - own[1])),
    ] {
        let found = outcome.metrics[metric];
        assert!(near(found, expected, 2e-5), "{metric} is {found}, not {expected}");
    }
    assert!(own[0] > 0.1 || own[1] < -0.1, "{own:?}: nothing was learnt");
}

#[test]
fn rankings_become_pairs_and_what_cannot_be_used_is_left_out() {
    let world = World::new();
    let long = "one two three four five six ".repeat(40);
    let rows = [
        json!({"prompt": "Say one.", "answers": ["one", "two", "three"], "order": [0, 1, 2]}),
        json!({"prompt": "Say two.", "answers": ["two", "one", "four"], "order": [[0, 1], 2]}),
        json!({"prompt": "Say four.", "chosen": "four", "rejected": "two", "margin": 2}),
        json!({"prompt": "Say it.", "chosen": "it", "rejected": "it"}),
        json!({"prompt": "Say it.", "chosen": "it", "rejected": ""}),
        json!({"prompt": long, "chosen": "it", "rejected": "two"}),
    ];
    write_lines(&world.path("pairs.jsonl"), &rows);
    for (too_long, pairs) in [("drop", 6), ("cut", 7)] {
        let toml = format!("batch_size = 1\nmax_length = 40\neval_every = 0\n[data]\ntoo_long = \"{too_long}\"\n");
        let file = world.path(&format!("{too_long}.toml"));
        fs::write(&file, toml).unwrap();
        let recipe: DpoRecipe = llm_train::read_recipe(&file.display().to_string(), &[]).unwrap();
        let outcome = world.dpo(&recipe, too_long);
        assert_eq!(outcome.steps, pairs, "{too_long}");
        assert!(world.metrics(too_long, "tokens").iter().all(|&tokens| tokens <= 80.), "{too_long}");
        assert!(world.metrics(too_long, "loss").iter().all(|loss| loss.is_finite()));
    }
    let read = llm_data::read_rankings(world.path("pairs.jsonl"), &ReadOptions::default()).unwrap().warnings;
    assert_eq!((read.equal_answers, read.empty_ranked), (1, 1));
}

#[test]
fn settings_that_do_not_apply_are_refused() {
    let world = World::new();
    for (recipe, part) in [
        (DpoRecipe { label_smoothing: 0.1, ..recipe(PairLoss::Ipo, 1) }, "label_smoothing is 0.1; it must be 0 unless"),
        (DpoRecipe { label_smoothing: 0.5, ..recipe(PairLoss::Robust, 1) }, "at least 0 and below 0.5"),
        (DpoRecipe { nll_weight: 1., ..recipe(PairLoss::Orpo, 1) }, "nll_weight is 1; it must be 0 with loss"),
        (DpoRecipe { precompute_ref_log_probs: true, ..recipe(PairLoss::Simpo, 1) }, "no reference"),
        (DpoRecipe { beta: 0., ..recipe(PairLoss::Sigmoid, 1) }, "beta is 0; it must be a number above 0"),
        (
            DpoRecipe {
                lora: Some(llm_model::LoraConfig { lora_dropout: 0.1, ..llm_model::LoraConfig::default() }),
                ..recipe(PairLoss::Sigmoid, 1)
            },
            "lora.lora_dropout is 0.1; it must be 0",
        ),
    ] {
        let error = dpo(&recipe, &world.inputs(), world.path("run"), RunOptions::default()).unwrap_err();
        assert!(error.is_callers_fault() && error.to_string().contains(part), "{error}");
        assert!(!world.path("run").exists());
    }
}
