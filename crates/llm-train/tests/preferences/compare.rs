//! The win rate of two models by a reward and by votes.

use candle_core::Device;
use llm_feedback::store::{Judged, Judgement, Kind, Policy, Store, now};
use llm_train::compare::{CompareInputs, CompareRecipe, Comparison, compare};
use llm_train::read_recipe;

use super::*;

/// A world with a second model, which prefers long answers, and prompts.
fn world() -> World {
    let world = World::new();
    let longer: Vec<Row> =
        PAIRS.iter().map(|&(prompt, a, b)| if a.len() > b.len() { (prompt, a, b) } else { (prompt, b, a) }).collect();
    world.write("longer.jsonl", &longer);
    let inputs = DpoInputs { data: vec![world.path("longer.jsonl")], ..world.inputs() };
    let recipe = DpoRecipe { nll_weight: 1., optimizer: optimizer(1e-2), ..recipe(PairLoss::Sigmoid, 25) };
    dpo(&recipe, &inputs, world.path("long"), RunOptions::default()).unwrap();
    let prompts: Vec<Value> = PAIRS.iter().map(|row| json!({ "prompt": row.0 })).collect();
    write_lines(&world.path("prompts.jsonl"), &prompts);
    world
}

fn settings(set: &[(&str, &str)]) -> CompareRecipe {
    let mut all = vec![("max_new_tokens", "12"), ("answers", "2"), ("rewards", "[{ kind = \"length\" }]")];
    all.extend(set);
    let all: Vec<(String, String)> = all.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    read_recipe("compare", &all).unwrap()
}

fn inputs(world: &World, models: [&str; 2]) -> CompareInputs {
    CompareInputs {
        model: models.map(|name| world.path(name)).to_vec(),
        data: Some(world.path("prompts.jsonl")),
        reward: Vec::new(),
        feedback: None,
        out: None,
    }
}

fn run(recipe: &CompareRecipe, inputs: &CompareInputs) -> Comparison {
    compare(recipe, inputs, &Device::Cpu).unwrap()
}

#[test]
fn a_reward_decides_and_the_result_does_not_depend_on_batches_and_sides() {
    let world = world();
    let base = inputs(&world, ["model", "long"]);
    let out = world.path("answers.jsonl");
    let found = run(&settings(&[]), &CompareInputs { out: Some(out.clone()), ..base.clone() });
    assert_eq!(found.wins + found.ties + found.losses, 16);
    let rows: Vec<Value> =
        fs::read_to_string(&out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let wins = rows.iter().filter(|row| row["rewards"][1].as_f64() > row["rewards"][0].as_f64()).count();
    assert_eq!((rows.len(), wins), (16, found.wins));
    let rate = (found.wins as f64 + 0.5 * found.ties as f64) / 16.;
    assert_eq!(found.win_rate, Some(rate));
    assert!(found.interval.unwrap().contains(rate));
    assert_eq!(run(&settings(&[("batch_size", "3")]), &base), found, "another batch size");
    // The other way round each win is a loss.
    let turned = run(&settings(&[]), &inputs(&world, ["long", "model"]));
    assert_eq!((turned.wins, turned.ties, turned.losses), (found.losses, found.ties, found.wins));
    // A reward of the other sign turns the result, a large margin makes all ties.
    let negative = run(&settings(&[("rewards", "[{ kind = \"length\", weight = -1.0 }]")]), &base);
    assert_eq!((negative.wins, negative.losses), (found.losses, found.wins));
    assert_eq!(run(&settings(&[("tie_margin", "100")]), &base).ties, 16);
    assert_ne!(run(&settings(&[("seed", "7"), ("temperature", "1.5")]), &base).rewards, found.rewards);
}

/// Negative control: a model against its copy, with the same sampling.
#[test]
fn a_model_ties_with_its_copy() {
    let world = world();
    for name in llm_files::list_files(world.path("model")).unwrap() {
        fs::create_dir_all(world.path("copy")).unwrap();
        fs::copy(world.path("model").join(&name), world.path("copy").join(&name)).unwrap();
    }
    let found = run(&settings(&[]), &inputs(&world, ["model", "copy"]));
    assert_eq!((found.ties, found.equal, found.win_rate), (16, 16, Some(0.5)));
}

#[test]
fn the_folder_of_an_adapter_is_a_model() {
    let world = world();
    let lora = llm_model::LoraConfig { r: 2, ..llm_model::LoraConfig::default() };
    world.dpo(&DpoRecipe { lora: Some(lora), optimizer: optimizer(3e-2), ..recipe(PairLoss::Sigmoid, 12) }, "adapter");
    let found = run(&settings(&[]), &inputs(&world, ["model", "adapter"]));
    assert!(found.equal < 16, "{found:?}");
}

#[test]
fn people_decide_through_the_database() {
    let world = world();
    let database = world.path("votes.sqlite");
    let inputs = CompareInputs { feedback: Some(database.clone()), ..inputs(&world, ["model", "long"]) };
    let recipe = settings(&[("rewards", "[]")]);
    let first = run(&recipe, &inputs);
    assert_eq!((first.wins + first.ties + first.losses, first.win_rate), (0, None));
    let store = Store::open(&database).unwrap();
    let items = store.items().unwrap();
    assert_eq!(items.len() + first.equal, 16);
    assert_eq!(first.open, items.len());

    // The annotator prefers the second model, but not always.
    let policy = Policy { gold_every: 0, repeat_every: 0, ..Policy::default() };
    let annotator = store.annotator("ann").unwrap();
    let second = world.path("long").display().to_string();
    let (mut votes, mut counts, mut first_shown) = (0, [0, 0, 0], 0);
    let (mut scores, mut prompts) = (Vec::new(), Vec::new());
    while let Some(task) = store.next(annotator, &policy, now()).unwrap() {
        let item = store.item(&task.item).unwrap().unwrap().item;
        let shown: Vec<String> = task.answers.iter().map(|answer| answer.id.clone()).collect();
        let best = item.answers.iter().find(|answer| answer.checkpoint.as_deref() == Some(&second)).unwrap();
        first_shown += usize::from(shown[0] == best.id);
        let other = shown.iter().find(|id| **id != best.id).unwrap().clone();
        let kind = match votes % 5 {
            0 => Kind::Skip,
            1 => Kind::AllBad,
            2 => Kind::Rank { ranks: [(best.id.clone(), 2), (other, 1)].into() },
            _ => Kind::Rank { ranks: [(best.id.clone(), 1), (other, 2)].into() },
        };
        counts[usize::from(votes % 5 == 1) + 2 * usize::from(votes % 5 == 2)] += usize::from(votes % 5 != 0);
        if votes % 5 != 0 {
            scores.push([0., 0.5, 0., 1., 1.][votes % 5]);
            prompts.push(json!(item.prompt).to_string());
        }
        let judgement = Judgement {
            id: format!("vote-{votes}"),
            item: task.item,
            annotator,
            kind,
            shown,
            grades: std::collections::BTreeMap::new(),
            reason: (votes % 5 == 0).then(|| "unclear".to_owned()),
            started: now(),
            ms_visible: 1,
            repeat_of: None,
            guideline_version: None,
        };
        assert_eq!(store.judge(&judgement, now()).unwrap(), Judged::Accepted);
        votes += 1;
    }
    assert!(votes >= 10 && (1..votes).contains(&first_shown), "{first_shown} of {votes}: the sides must change");
    // Without the prompts: the votes alone. With them no item is added twice.
    let counted = run(&recipe, &CompareInputs { data: None, ..inputs.clone() });
    assert_eq!((counted.wins, counted.ties, counted.losses), (counts[0], counts[1], counts[2]));
    let total = (counts[0] + counts[1] + counts[2]) as f64;
    assert_eq!(counted.win_rate, Some((counts[0] as f64 + 0.5 * counts[1] as f64) / total));
    // Both answers to a prompt are one cluster.
    let clusters: Vec<usize> =
        prompts.iter().map(|prompt| prompts.iter().position(|other| other == prompt).unwrap()).collect();
    let expected = llm_eval::stats::share_interval(&scores, &clusters, recipe.seed).unwrap();
    let interval = counted.interval.unwrap();
    assert!(clusters.iter().collect::<std::collections::BTreeSet<_>>().len() < scores.len());
    assert!((interval.low - expected.low).abs() < 0.1 && (interval.high - expected.high).abs() < 0.1, "{interval:?}");
    let narrow = llm_eval::stats::wilson_of(&scores);
    assert!(interval != narrow, "not one cluster for each answer");
    let again = run(&recipe, &inputs);
    assert_eq!((again.wins, store.items().unwrap().len()), (counted.wins, items.len()));
    assert_eq!(counted.open, items.len() - total as usize);
}

#[test]
fn wrong_inputs_are_refused_before_anything_is_made() {
    let world = World::new();
    write_lines(&world.path("prompts.jsonl"), &[json!({ "prompt": "Say one." })]);
    let base = inputs(&world, ["model", "model"]);
    let out = world.path("pairs.jsonl");
    for (inputs, part) in [
        (base.clone(), "is compared with itself"),
        (CompareInputs { model: vec![world.path("model")], ..base.clone() }, "--model is given 1 times"),
        (CompareInputs { model: vec![world.path("model"), world.path("nowhere")], ..base.clone() }, "nowhere"),
        (
            CompareInputs { model: vec![world.path("model"), world.path("x")], out: Some(out), ..base.clone() },
            "pairs.jsonl: already exists",
        ),
        (
            CompareInputs {
                model: vec![world.path("model"), world.path("x")],
                data: None,
                feedback: Some(world.path("none.sqlite")),
                ..base
            },
            "none.sqlite",
        ),
    ] {
        let error = compare(&settings(&[]), &inputs, &Device::Cpu).unwrap_err();
        assert!(error.is_callers_fault() && error.to_string().contains(part), "{error}");
    }
    assert!(!world.path("none.sqlite").exists());
}
