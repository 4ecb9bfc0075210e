use llm_data::{ChatMessage, Conversation};
use llm_engine::{Sampling, TextModel};
use llm_feedback::Annotator;
use llm_feedback::report::{ReportOptions, report};
use llm_feedback::store::{NewAnswer, NewItem, Policy, Store};
use llm_model::{Head, Model, ModelConfig};
use llm_synthetic::{Split, Use, World, WorldConfig};
use llm_tokenizer::{TrainConfig, train_bpe};

use super::*;

/// A model that knows nothing: its tokens are drawn from the random streams alone.
fn model() -> TextModel {
    let config = TrainConfig { vocab_size: 400, min_frequency: 1 };
    let tokenizer = train_bpe(&config, ["the cat sat on the mat."].iter()).unwrap();
    let config = ModelConfig {
        vocab_size: tokenizer.vocab_size(),
        hidden_size: 16,
        intermediate_size: 16,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        initializer_range: 1e-6,
        ..ModelConfig::default()
    };
    let model = Model::init(config, Head::LanguageModel, 1).unwrap().frozen().unwrap();
    TextModel { model, tokenizer: tokenizer.with_default_chat_template().unwrap() }
}

fn contestants(temperatures: &[f64]) -> Vec<Contestant> {
    let sampling = |&temperature: &f64| Sampling { temperature, ..Sampling::default() };
    let samplings: Vec<Sampling> = temperatures.iter().map(sampling).collect();
    ["runs/a", "runs/b"].iter().flat_map(|name| Contestant::start(name, model(), &samplings).unwrap()).collect()
}

fn prompts(count: usize) -> Vec<Conversation> {
    (0..count).map(|at| Conversation::from(vec![ChatMessage::user(format!("question {at}"))])).collect()
}

fn store() -> (tempfile::TempDir, Store) {
    // In memory where the system has such a folder: these tests wait for no disk.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let store = Store::open(dir.path().join("votes.sqlite")).unwrap();
    (dir, store)
}

const OPTIONS: CollectOptions = CollectOptions { answers: 3, max_new_tokens: 6, seed: 42 };

fn run(store: &Store, prompts: &[Conversation], contestants: &[Contestant], options: &CollectOptions) -> Collected {
    collect(store, prompts, "prompts.jsonl", contestants, options, &mut |_| ()).unwrap()
}

fn items(store: &Store) -> Vec<NewItem> {
    store.items().unwrap().into_iter().map(|item| item.item).collect()
}

#[test]
fn answers_are_recorded_with_all_that_made_them_and_the_same_call_gives_the_same_answers() {
    let (contestants, prompts) = (contestants(&[1.]), prompts(20));
    let (_dir, first) = store();
    let done = run(&first, &prompts, &contestants, &OPTIONS);
    assert_eq!(done, Collected { added: 20, ..Collected::default() });
    let tokenizer = model().tokenizer;
    let mut by_model = [0, 0];
    for item in items(&first) {
        assert_eq!((item.answers.len(), item.source.as_str()), (3, "prompts.jsonl"));
        for answer in &item.answers {
            let checkpoint = answer.checkpoint.as_deref().unwrap();
            by_model[usize::from(checkpoint == "runs/b")] += 1;
            assert_eq!(tokenizer.decode(answer.token_ids.as_ref().unwrap()).unwrap(), answer.text);
            assert_eq!(answer.sampling.as_ref().unwrap()["sampling"]["temperature"], 1.);
            assert!(answer.seed.is_some() && ["stop", "length"].contains(&answer.finish.as_deref().unwrap()));
            assert!(!answer.id.contains("runs"), "the id says nothing of the model");
        }
    }
    assert!(by_model.iter().all(|&count| count >= 20), "each model answers each prompt: {by_model:?}");
    let (_dir, second) = store();
    // In another order, beside other prompts.
    let reversed: Vec<Conversation> = prompts.iter().rev().cloned().collect();
    run(&second, &reversed, &contestants, &OPTIONS);
    let mut other = items(&second);
    other.reverse();
    assert_eq!(items(&first), other);
    let (_dir, third) = store();
    run(&third, &prompts, &contestants, &CollectOptions { seed: 43, ..OPTIONS });
    assert!(items(&third).iter().zip(items(&first)).all(|(one, other)| one.answers[0].text != other.answers[0].text));
}

#[test]
fn a_second_call_goes_on_and_adds_nothing_twice() {
    let (contestants, mut prompts) = (contestants(&[1.]), prompts(20));
    let (_dir, whole) = store();
    run(&whole, &prompts, &contestants, &OPTIONS);
    let (_dir, parts) = store();
    assert_eq!(run(&parts, &prompts[..7], &contestants, &OPTIONS).added, 7);
    prompts.push(prompts[3].clone());
    let mut events = Vec::new();
    let observer = &mut |event: crate::run::Event| {
        if let crate::run::Event::Begin { total, done, .. } = event {
            events.push((total, done));
        }
    };
    let done = collect(&parts, &prompts, "prompts.jsonl", &contestants, &OPTIONS, observer).unwrap();
    assert_eq!(done, Collected { added: 13, present: 7, duplicates: 1, ..Collected::default() });
    assert_eq!(events, [(20, 7)]);
    assert_eq!(items(&parts), items(&whole));
    let done = run(&parts, &prompts, &contestants, &OPTIONS);
    assert_eq!((done.added, done.present, parts.item_count().unwrap()), (0, 20, 20));
}

#[test]
fn equal_answers_are_sampled_again_or_left_out_and_counted() {
    let (_dir, store) = store();
    // Greedy answers of equal models are equal: no choice is left.
    let greedy = contestants(&[0.]);
    let done = run(&store, &prompts(3), &greedy, &OPTIONS);
    assert_eq!((done.added, done.equal, done.resampled, done.without_choice), (0, 6, 0, 3));
    let done = run(&store, &prompts(3), &greedy, &OPTIONS);
    assert_eq!((done.equal, done.without_choice, store.item_count().unwrap()), (0, 3, 0), "not computed again");
    // One token at a high temperature is sometimes the same.
    let options = CollectOptions { answers: 9, max_new_tokens: 1, seed: 1 };
    let done = run(&store, &prompts(20), &contestants(&[1.]), &options);
    assert!(done.added == 20 && done.resampled > 0, "{done:?}");
    for item in items(&store) {
        let texts: std::collections::BTreeSet<_> = item.answers.iter().map(|answer| answer.text.clone()).collect();
        assert_eq!(texts.len(), item.answers.len());
    }
    for (options, part) in [
        (CollectOptions { answers: 1, ..OPTIONS }, "answers is 1; it must be from 2 to 9"),
        (CollectOptions { answers: 10, ..OPTIONS }, "answers is 10"),
        (CollectOptions { max_new_tokens: 0, ..OPTIONS }, "at least one new token"),
    ] {
        let error = collect(&store, &prompts(1), "", &greedy, &options, &mut |_| ()).unwrap_err();
        assert!(error.to_string().contains(part) && error.is_callers_fault(), "{error}");
    }
}

/// The questions of the built-in world with their answers.
fn world(count: usize) -> Vec<NewItem> {
    let questions = World::new(WorldConfig::default()).questions(Split::Train, Use::Prompts, count);
    let item = |(at, question): (usize, llm_synthetic::Question)| NewItem {
        id: format!("q{at}"),
        prompt: vec![ChatMessage::user(&question.prompt)],
        source: "world".to_owned(),
        gold_order: None,
        answers: (0..)
            .zip(&question.answers)
            .map(|(at, answer)| NewAnswer::text(format!("{at}"), &answer.text))
            .collect(),
    };
    questions.into_iter().enumerate().map(item).collect()
}

#[test]
fn simulated_annotators_judge_as_people_do_with_their_noise_and_bias() {
    let utilities = WorldUtilities::new(WorldConfig::default());
    let judged = |annotator: Annotator, names: &[&str]| {
        let (dir, store) = store();
        store.add_items(&world(40)).unwrap();
        let options = SimulateOptions {
            names: names.iter().map(|&name| name.to_owned()).collect(),
            annotator,
            policy: Policy { overlap: 2, repeat_every: 10, ..Policy::default() },
        };
        let done = simulate(&store, &options, |prompt, texts| utilities.of(prompt, texts), &mut |_| ()).unwrap();
        assert_eq!(simulate(&store, &options, |_, _| panic!("nothing is left"), &mut |_| ()).unwrap(), 0);
        let found = report(&store, &ReportOptions { samples: 10, ..ReportOptions::default() }).unwrap();
        assert_eq!(found.judgements, done);
        drop(dir);
        found
    };
    let careful = judged(Annotator { beta: 50., ..Annotator::default() }, &["one", "two"]);
    let random = judged(Annotator { beta: 0., ..Annotator::default() }, &["one", "two"]);
    // Answers of equal utility are in a random order for both.
    let (sure, chance) = (careful.agreement.unwrap(), random.agreement.unwrap());
    assert!(sure.low > chance.high && chance.low < 0.5 && chance.high > 0.5, "{sure:?} {chance:?}");
    assert!(careful.self_agreement.unwrap().share > random.self_agreement.unwrap().share);
    assert!((0.4..0.6).contains(&random.first_shown_wins.unwrap().share));
    assert!(careful.judgements > 80 && careful.annotators.len() == 2, "two judges, and repeats");
    let biased = judged(Annotator { position_bias: 100., ..Annotator::default() }, &["one"]);
    // The first of four is in 3 of 6 pairs; the others have no bias.
    assert!(biased.first_shown_wins.unwrap().low > 0.65, "{:?}", biased.first_shown_wins);
    let long = judged(Annotator { length_bias: 1000., ..Annotator::default() }, &["one"]);
    assert!(long.longer_wins.unwrap().share > 0.9, "{:?}", long.longer_wins);
}

#[test]
fn a_prompt_that_the_world_does_not_know_is_an_error() {
    let utilities = WorldUtilities::new(WorldConfig::default());
    let error = utilities.of(&[ChatMessage::user("Who?")], &["x"]).unwrap_err();
    assert!(error.to_string().contains("\"Who?\" is no question of the built-in world") && error.is_callers_fault());
}
