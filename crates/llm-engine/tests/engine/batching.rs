//! What runs beside a request, where its pages come from and whether it was interrupted changes nothing.

use std::time::Duration;

use llm_engine::{Engine, EngineOptions, Pooling, Request, Sampling, SubmitError, TokenLogprobs};

use crate::{Answers, ask, collect, engine, exact, greedy, memory, request, start};

/// Requests of all kinds: short and long, greedy and sampled, with several answers, penalties, stop strings, log-probabilities.
fn requests() -> Vec<Request> {
    let long: Vec<u32> = (0..300).map(|i| (i * 37 + i / 7) % 290).collect();
    let sampled = |seed| Sampling { seed: Some(seed), ..Sampling::default() };
    let penalized = Sampling { repetition_penalty: 1.3, frequency_penalty: 0.2, top_p: 0.9, ..sampled(5) };
    vec![
        Request { sampling: greedy(), ..request(&long[..3], 40) },
        Request { sampling: greedy(), logprobs: Some(2), ..request(&long, 60) },
        Request { sampling: sampled(1), ..request(&long[..150], 60) },
        Request { sampling: sampled(2), choices: 3, ..request(&long[..129], 50) },
        Request { sampling: sampled(2), choices: 2, ..request(&long[..128], 50) },
        Request { sampling: penalized, ..request(&long[10..80], 90) },
        Request { sampling: sampled(3), prompt_logprobs: Some(1), ..request(&long[..200], 20) },
        Request { sampling: sampled(4), stop: vec!["a".to_owned(), "th".to_owned()], ..request(&long[5..9], 80) },
        Request { sampling: greedy(), ..request(&long[..64], 70) },
    ]
}

/// The answers of each request on an engine of its own.
fn alone() -> Vec<Answers> {
    let options = EngineOptions { prefix_cache: false, ..exact() };
    requests().into_iter().map(|request| ask(&start(options.clone()), request)).collect()
}

fn together(engine: &Engine) -> Vec<Answers> {
    let running: Vec<_> = requests().into_iter().map(|r| (r.choices, engine.submit(r).unwrap())).collect();
    running.into_iter().map(|(choices, generation)| collect(generation, choices)).collect()
}

/// Equal, up to the rounding of log-probabilities.
fn assert_same(answers: &[Answers], expected: &[Answers], what: &str) {
    let near = |a: &TokenLogprobs, b: &TokenLogprobs| (a.logprob - b.logprob).abs() < 1e-4;
    for (i, (answers, expected)) in answers.iter().zip(expected).enumerate() {
        for (choice, expected) in answers.choices.iter().zip(&expected.choices) {
            assert_eq!((&choice.text, choice.end), (&expected.text, expected.end), "{what}: request {i}");
            assert_eq!(choice.ids(), expected.ids(), "{what}: request {i}");
            for (token, expected) in choice.tokens.iter().zip(&expected.tokens) {
                assert_eq!(token.logprobs.is_some(), expected.logprobs.is_some());
                assert!(token.logprobs.iter().zip(&expected.logprobs).all(|(a, b)| near(a, b)), "{what}: request {i}");
            }
        }
        let prompts = answers.prompt.iter().flatten().zip(expected.prompt.iter().flatten());
        assert!(prompts.skip(1).all(|(a, b)| near(a.as_ref().unwrap(), b.as_ref().unwrap())), "{what}: request {i}");
        assert_eq!(answers.prompt.as_ref().map(Vec::len), expected.prompt.as_ref().map(Vec::len));
        assert_eq!(answers.usage.completion_tokens, expected.usage.completion_tokens);
    }
}

/// The log-probabilities of an answer that is generated beside the prompts of others have the bits that they have alone.
#[test]
fn a_deterministic_engine_gives_the_same_bits_beside_long_prompts() {
    let options = EngineOptions { deterministic: true, prefix_cache: false, ..EngineOptions::default() };
    let first = || Request { sampling: greedy(), logprobs: Some(3), ..request(&[5, 6, 7], 120) };
    let alone = ask(&start(options.clone()), first());
    let engine = start(options);
    let generation = engine.submit(first()).unwrap();
    let long = |seed: u32| (0..400).map(|i| (i * 37 + seed) % 290).collect::<Vec<u32>>();
    let others: Vec<_> = (0..9).map(|seed| engine.submit(request(&long(seed), 30)).unwrap()).collect();
    assert_eq!(collect(generation, 1).choices, alone.choices);
    others.into_iter().for_each(|other| drop(collect(other, 1)));
}

#[test]
fn an_answer_does_not_depend_on_the_others_on_the_cache_or_on_interruptions() {
    let expected = alone();
    assert!(expected.iter().all(|answers| !answers.choices[0].text.is_empty()));

    let engine = engine();
    assert_same(&together(&engine), &expected, "among others");
    assert_eq!(engine.stats().preemptions, 0);
    let again = together(&engine);
    assert_same(&again, &expected, "from the cache");
    let cached: Vec<usize> = again.iter().map(|answers| answers.usage.cached_tokens).collect();
    // Whole pages of 64, but never the last token; the request with log-probabilities of its prompt needs all of it.
    assert_eq!(cached, [0, 256, 128, 128, 64, 64, 0, 0, 0]);
    assert_eq!(engine.stats().pages_used, 0);

    let small = start(EngineOptions { kv_memory: Some(memory(8)), ..exact() });
    assert_same(&together(&small), &expected, "interrupted");
    assert!(small.stats().preemptions > 0, "{:?}", small.stats());
    assert_eq!((small.stats().pages_used, small.stats().pages_total), (0, 8));

    let fixed = start(EngineOptions { deterministic: true, max_running: 4, ..EngineOptions::default() });
    assert_same(&together(&fixed), &expected, "at most four at a time, in whole pages");
}

#[test]
fn a_prompt_too_long_for_the_pool_is_refused_and_all_others_end() {
    let engine = start(EngineOptions { kv_memory: Some(memory(3)), ..exact() });
    assert_eq!(engine.model_info().context_length, 192);
    match engine.submit(request(&[1; 192], 1)) {
        Err(SubmitError::Invalid(error)) => assert!(error.to_string().contains("192"), "{error}"),
        other => panic!("{other:?}"),
    }
    let running: Vec<_> =
        (0..8).map(|i| engine.submit(Request { choices: 2, ..request(&[i; 100], 500) }).unwrap()).collect();
    for generation in running {
        assert_eq!(collect(generation, 2).usage.completion_tokens, 2 * 92, "up to what the pool has room for");
    }
    assert_eq!(engine.stats().pages_used, 0);
}

#[test]
fn four_times_the_capacity_is_answered_or_refused() {
    let options = EngineOptions { max_queue: 8, max_running: 4, kv_memory: Some(memory(16)), ..exact() };
    let (engine, expected) = (start(options), alone());
    let (mut refused, mut accepted) = (0, Vec::new());
    for round in 0..16 {
        for (i, request) in requests().into_iter().enumerate() {
            let choices = request.choices;
            match engine.submit(request) {
                // Some clients go away.
                Ok(generation) if (round + i) % 5 == 0 => drop(generation),
                Ok(generation) => accepted.push((i, collect_later(generation, choices))),
                Err(SubmitError::Busy { .. }) => refused += 1,
                Err(error) => panic!("{error}"),
            }
            let stats = engine.stats();
            assert!(stats.waiting <= 8 && stats.pages_used <= 16, "{stats:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(refused > 0 && accepted.len() > 8);
    for (i, answers) in accepted {
        assert_same(&[answers.join().unwrap()], &expected[i..=i], "under load");
    }
    assert_eq!((engine.stats().failed, engine.stats().pages_used), (0, 0));
}

fn collect_later(generation: llm_engine::Generation, choices: usize) -> std::thread::JoinHandle<Answers> {
    std::thread::spawn(move || collect(generation, choices))
}

#[test]
fn embeddings_beside_other_requests_are_those_of_an_idle_engine() {
    let engine = engine();
    let ids: Vec<u32> = (0..400).map(|i| (i * 13) % 290).collect();
    let embed = || engine.embed(ids.clone(), Pooling::Mean).unwrap();
    let expected = embed().blocking_get().unwrap();
    let generations: Vec<_> = requests().into_iter().map(|request| engine.submit(request).unwrap()).collect();
    let embedding = embed().blocking_get().unwrap();
    assert!(embedding.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4));
    drop(generations);
}

#[test]
fn only_the_same_salt_shares_pages() {
    let engine = engine();
    let salted = |salt: &str| Request { cache_salt: Some(salt.to_owned()), ..request(&[1; 200], 1) };
    let cached: Vec<usize> =
        ["a", "b", "a"].iter().map(|salt| ask(&engine, salted(salt)).usage.cached_tokens).collect();
    assert_eq!(cached, [0, 0, 192]);
    let off = start(EngineOptions { prefix_cache: false, ..exact() });
    assert_eq!([0, 1].map(|_| ask(&off, request(&[1; 200], 1)).usage.cached_tokens), [0, 0]);
}
