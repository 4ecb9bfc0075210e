//! Speculative decoding changes the speed of answers, not their distribution.

use llm_engine::{Engine, EngineOptions, Request, Sampling};
use llm_model::{Head, Model};

use crate::{ask, config, exact, greedy, memory, request, start, text_model};

/// An engine whose draft model has the weights of `seed`; 7 are those of the model.
fn with_draft(seed: u64, options: EngineOptions) -> Engine {
    let mut draft = text_model(Head::LanguageModel);
    draft.model = Model::init(config(), Head::LanguageModel, seed).unwrap().frozen().unwrap();
    Engine::start_with_draft(text_model(Head::LanguageModel), draft, options).unwrap()
}

fn prompts() -> Vec<Vec<u32>> {
    let long: Vec<u32> = (0..200).map(|i| (i * 37 + i / 7) % 290).collect();
    vec![long[..2].to_vec(), long[..64].to_vec(), long.clone(), [&long[..30], &long[..30]].concat()]
}

#[test]
fn a_greedy_answer_is_that_of_plain_decoding() {
    let lookup = EngineOptions { prompt_lookup: true, draft_tokens: 6, ..exact() };
    let small = EngineOptions { kv_memory: Some(memory(14)), ..exact() };
    let engines = [with_draft(7, exact()), with_draft(8, exact()), start(lookup), with_draft(8, small)];
    let penalized = Sampling { repetition_penalty: 1.2, min_tokens: 3, ..greedy() };
    let plain = start(exact());
    for (i, engine) in engines.iter().enumerate() {
        let (mut asked, mut expected) = (Vec::new(), Vec::new());
        for (prompt, sampling) in prompts().into_iter().flat_map(|p| [(p.clone(), greedy()), (p, penalized.clone())]) {
            let all = Request { sampling, logprobs: Some(1), stop: vec!["zz".to_owned()], ..request(&prompt, 90) };
            expected.push(ask(&plain, all.clone()));
            asked.push(engine.submit(all).unwrap());
        }
        for (generation, expected) in asked.into_iter().zip(expected) {
            let answers = crate::collect(generation, 1);
            assert_eq!(answers.choices[0].ids(), expected.choices[0].ids(), "engine {i}");
            assert_eq!(answers.choices[0].text, expected.choices[0].text);
            for (token, expected) in answers.choices[0].tokens.iter().zip(&expected.choices[0].tokens) {
                let [token, expected] = [token, expected].map(|token| token.logprobs.as_ref().unwrap().logprob);
                assert!((token - expected).abs() < 1e-4);
            }
        }
        let stats = engine.stats();
        assert!(stats.draft_tokens > 50 && stats.accepted_tokens <= stats.draft_tokens, "engine {i}: {stats:?}");
        assert_eq!((stats.pages_used, stats.failed), (0, 0));
        // The model accepts its own drafts; few others have the same most likely token of 300.
        let share = stats.accepted_tokens as f64 / stats.draft_tokens as f64;
        assert!(if i == 0 { share > 0.99 } else { share < 0.9 }, "engine {i}: {share}");
    }
}

#[test]
fn a_draft_by_the_model_itself_does_not_change_a_sampled_answer() {
    let (engine, plain) = (with_draft(7, exact()), start(exact()));
    for (i, prompt) in prompts().into_iter().enumerate() {
        let sampling = Sampling { seed: Some(i as u64), top_p: 0.95, ..Sampling::default() };
        let all = Request { sampling, choices: 2, ..request(&prompt, 60) };
        assert_eq!(ask(&engine, all.clone()).choices, ask(&plain, all).choices);
    }
    assert!(engine.stats().accepted_tokens > 100);
}

/// The frequencies of the second and third token, which are drafted by another model, against exact probabilities.
#[test]
fn sampled_answers_have_the_distribution_of_the_model() {
    const IDS: [u32; 3] = [20, 90, 200];
    const TRIALS: usize = 1500;
    let prompt = vec![4, 5, 6];
    let model = text_model(Head::LanguageModel).model;
    let softmax = |ids: &[u32]| {
        let logits = model.forward(&llm_model::Batch::new(&[ids.to_vec()]).unwrap()).unwrap();
        let last = logits.get(0).unwrap().get(ids.len() - 1).unwrap().to_vec1::<f32>().unwrap();
        let weights = IDS.map(|id| f64::from(last[id as usize]).exp());
        weights.map(|weight| weight / weights.iter().sum::<f64>())
    };
    let engine = with_draft(8, EngineOptions { draft_tokens: 2, ..exact() });
    let mut counts = std::collections::BTreeMap::new();
    for seed in 0..TRIALS as u64 {
        let sampling = Sampling { allowed_ids: Some(IDS.to_vec()), seed: Some(seed), ..Sampling::default() };
        let answers = ask(&engine, Request { sampling, ..request(&prompt, 3) });
        *counts.entry(answers.choices[0].ids()).or_insert(0.) += 1.;
    }
    let mut chi_square = 0.;
    for (a, first) in IDS.iter().zip(softmax(&prompt)) {
        for (b, second) in IDS.iter().zip(softmax(&[&prompt[..], &[*a]].concat())) {
            for (c, third) in IDS.iter().zip(softmax(&[&prompt[..], &[*a, *b]].concat())) {
                let expected = TRIALS as f64 * first * second * third;
                let count: f64 = counts.get(&vec![*a, *b, *c]).copied().unwrap_or_default();
                chi_square += (count - expected).powi(2) / expected;
            }
        }
    }
    assert!(chi_square < 54.1, "{chi_square}"); // the 0.999 quantile of 26 degrees of freedom
    let stats = engine.stats();
    assert!(stats.accepted_tokens > 300 && stats.draft_tokens > stats.accepted_tokens + 300, "{stats:?}");
}

#[test]
fn a_draft_model_with_another_tokenizer_is_refused() {
    let mut draft = text_model(Head::LanguageModel);
    draft.tokenizer =
        llm_tokenizer::train_bpe(&llm_tokenizer::TrainConfig { vocab_size: 280, min_frequency: 2 }, ["other"].iter())
            .unwrap();
    let error = Engine::start_with_draft(text_model(Head::LanguageModel), draft, exact()).unwrap_err();
    assert!(error.is_callers_fault() && error.to_string().contains("draft model"), "{error}");
}
