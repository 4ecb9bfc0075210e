//! What the engine answers: texts, log-probabilities, usage.

use candle_core::{D, DType};
use candle_nn::ops::log_softmax;
use llm_engine::{Engine, FinishReason, GenerateOptions, Pooling, Request, Sampling, TextOptions, generate};
use llm_model::{Batch, Head};

use crate::{ask, engine, exact, greedy, request, text_model};

#[test]
fn a_greedy_answer_is_that_of_generate() {
    let (engine, model) = (engine(), text_model(Head::LanguageModel));
    for prompt in [vec![5, 6, 7], vec![40; 100], (0..200).collect()] {
        let options = GenerateOptions { max_new_tokens: 20, stop_ids: Some(Vec::new()), sampling: greedy() };
        let expected = generate(&model.model, std::slice::from_ref(&prompt), &options, |_, _| true).unwrap();
        let answers = ask(&engine, Request { sampling: greedy(), ..request(&prompt, 20) });
        assert_eq!(answers.choices[0].ids(), expected[0]);
        assert_eq!(answers.choices[0].text, model.tokenizer.decode(&expected[0]).unwrap());
        assert_eq!(answers.choices[0].end, Some((FinishReason::Length, 20)));
        assert_eq!((answers.usage.prompt_tokens, answers.usage.completion_tokens), (prompt.len(), 20));
    }
}

#[test]
fn choices_differ_and_the_seed_repeats_them() {
    let engine = engine();
    let ask_twice = || ask(&engine, Request { choices: 5, ..request(&[9, 8, 7], 12) });
    let first = ask_twice();
    for (i, choice) in first.choices.iter().enumerate() {
        assert!(first.choices[..i].iter().all(|other| other.text != choice.text), "answer {i} differs from the others");
    }
    assert_eq!(first.usage.completion_tokens, 60);
    let sampling = Sampling { seed: Some(first.usage.seed), ..Sampling::default() };
    let again = ask(&engine, Request { choices: 5, sampling, ..request(&[9, 8, 7], 12) });
    assert_eq!(again.choices, first.choices);
}

#[test]
fn log_probabilities_are_the_log_softmax_of_the_model() {
    let (engine, model) = (engine(), text_model(Head::LanguageModel));
    let prompt: Vec<u32> = (0..150).map(|i| (i * 37) % 290).collect(); // more than one piece of rows
    let sampling = Sampling { temperature: 1.7, top_k: 40, ..Sampling::default() };
    let (logprobs, prompt_logprobs) = (Some(3), Some(2));
    let asked = Request { sampling, logprobs, prompt_logprobs, ..request(&prompt, 10) };
    let answers = ask(&engine, asked);

    let ids: Vec<u32> = prompt.iter().copied().chain(answers.choices[0].ids()).collect();
    let logits = model.model.forward(&Batch::new(std::slice::from_ref(&ids)).unwrap()).unwrap();
    let expected = log_softmax(&logits.to_dtype(DType::F64).unwrap(), D::Minus1).unwrap();
    let expected = expected.squeeze(0).unwrap().to_vec2::<f64>().unwrap();
    let reported = answers.prompt.unwrap();
    assert_eq!((reported.len(), reported[0].is_none()), (prompt.len(), true));
    let reported = reported.into_iter().map(|logprobs| (logprobs, 2));
    let generated = answers.choices[0].tokens.iter().map(|token| (token.logprobs.clone(), 3));
    for (at, (logprobs, top)) in reported.chain(generated).enumerate().skip(1) {
        let (logprobs, expected) = (logprobs.unwrap(), &expected[at - 1]);
        assert!((f64::from(logprobs.logprob) - expected[ids[at] as usize]).abs() < 1e-4, "position {at}");
        let mut best = expected.clone();
        best.sort_by(|a, b| b.total_cmp(a));
        assert_eq!(logprobs.top.len(), top);
        for (reported, best) in logprobs.top.iter().zip(best) {
            assert!((f64::from(reported.1) - best).abs() < 1e-4);
            assert!((expected[reported.0 as usize] - best).abs() < 1e-4, "position {at}: the id has that value");
        }
    }
}

#[test]
fn without_new_tokens_only_the_prompt_is_scored() {
    let answers = ask(&engine(), Request { prompt_logprobs: Some(0), ..request(&[1, 2, 3], 0) });
    assert_eq!(answers.prompt.unwrap().len(), 3);
    assert_eq!((answers.choices[0].end, answers.choices[0].text.as_str()), (Some((FinishReason::Length, 0)), ""));
}

#[test]
fn an_answer_ends_at_a_stop_id_which_is_its_last_token() {
    let engine = engine();
    let free = ask(&engine, Request { sampling: greedy(), ..request(&[3, 4], 30) });
    let ids = free.choices[0].ids();
    let stop = ids[10];
    let end = ids.iter().position(|&id| id == stop).unwrap();
    let stopped =
        ask(&engine, Request { sampling: greedy(), stop_ids: Some(vec![stop]), ..Request::new(vec![3, 4], 30) });
    assert_eq!(stopped.choices[0].ids(), ids[..=end]);
    assert_eq!(stopped.choices[0].end, Some((FinishReason::Stop, end + 1)));
    assert_eq!(stopped.choices[0].text, engine.tokenizer().decode(&ids[..end]).unwrap(), "without the end token");
}

#[test]
fn a_stop_string_is_cut_with_its_tokens_and_counted() {
    let engine = engine();
    let free = ask(&engine, Request { sampling: greedy(), logprobs: Some(0), ..request(&[3, 4], 60) });
    let text = &free.choices[0].text;
    // Three characters in the middle of the text, which need not be a whole number of tokens.
    let from = text.char_indices().map(|(at, _)| at).nth(text.chars().count() / 2).unwrap();
    let stop: String = text[from..].chars().take(3).collect();
    let at = text.find(&stop).unwrap();
    let stopped =
        ask(&engine, Request { sampling: greedy(), stop: vec!["\u{1}no".to_owned(), stop], ..request(&[3, 4], 60) });
    let choice = &stopped.choices[0];
    assert_eq!(choice.text, text[..at]);
    let (reason, counted) = choice.end.unwrap();
    assert_eq!((reason, stopped.usage.completion_tokens), (FinishReason::Stop, counted));
    assert!(choice.tokens.len() < counted, "the tokens of the stop string are not reported");
    assert_eq!(choice.ids(), free.choices[0].ids()[..choice.tokens.len()]);
}

#[test]
fn the_text_is_that_of_complete() {
    let (engine, model) = (engine(), text_model(Head::LanguageModel));
    let options = TextOptions { max_new_tokens: 40, stop: vec!["t".to_owned()], sampling: greedy() };
    for prompt in [[7u32, 8], [100, 101], [250, 3]] {
        let expected = model.complete(&prompt, &options, |_| true).unwrap();
        let asked = Request { sampling: greedy(), stop: options.stop.clone(), ..Request::new(prompt.to_vec(), 40) };
        let answers = ask(&engine, asked);
        assert_eq!((&answers.choices[0].text, answers.choices[0].end.unwrap().1), (&expected.text, expected.tokens));
    }
}

#[test]
fn embeddings_are_the_pooled_hidden_states() {
    let (engine, model) = (engine(), text_model(Head::LanguageModel));
    let ids: Vec<u32> = (10..100).collect();
    let hidden =
        model.model.hidden(&Batch::new(std::slice::from_ref(&ids)).unwrap(), None).unwrap().squeeze(0).unwrap();
    let hidden = hidden.to_vec2::<f32>().unwrap();
    let mean = (0..32).map(|i| hidden.iter().map(|row| row[i]).sum::<f32>() / 90.).collect();
    let cases = [(Pooling::First, hidden[0].clone()), (Pooling::Last, hidden[89].clone()), (Pooling::Mean, mean)];
    for (pooling, expected) in cases {
        let embedding = engine.embed(ids.clone(), pooling).unwrap().blocking_get().unwrap();
        assert_eq!(embedding.len(), 32);
        assert!(embedding.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4), "{pooling:?}");
    }
}

#[test]
fn a_score_is_that_of_the_last_token_and_scaled() {
    let mut model = text_model(Head::Sequence);
    let ids: Vec<u32> = (10..100).collect();
    let raw = model.model.forward(&Batch::new(std::slice::from_ref(&ids)).unwrap()).unwrap().flatten_all().unwrap();
    let raw = raw.to_vec1::<f32>().unwrap()[89];
    for (key, value) in [("reward_mean", 0.5), ("reward_std", 0.25)] {
        model.model.extra.insert(key.to_owned(), value.into());
    }
    let engine = Engine::start(model, exact()).unwrap();
    let score = engine.score(ids).unwrap().blocking_get().unwrap();
    assert!((score - (raw - 0.5) / 0.25).abs() < 1e-3, "{score}");
}
