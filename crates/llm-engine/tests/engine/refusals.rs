//! Wrong requests are refused before they enter the queue.

use llm_engine::{Engine, EngineOptions, Request, Sampling, SubmitError};
use llm_model::Head;

use crate::{ask, engine, request, text_model};

fn refusal(engine: &Engine, request: Request) -> String {
    match engine.submit(request) {
        Err(SubmitError::Invalid(error)) => {
            assert!(error.is_callers_fault(), "{error}");
            error.to_string()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_wrong_field_is_refused_by_name() {
    let engine = engine();
    let ok = || request(&[1, 2], 3);
    let cases: Vec<(&str, Request)> = vec![
        ("prompt is empty", request(&[], 3)),
        ("prompt has the token id 300", request(&[1, 300], 3)),
        ("512 tokens", request(&vec![1; 512], 1)),
        ("513 tokens", request(&vec![1; 513], 0)),
        ("choices is 0", Request { choices: 0, ..ok() }),
        ("choices is 129", Request { choices: 129, ..ok() }),
        ("stop has an empty string", Request { stop: vec!["a".to_owned(), String::new()], ..ok() }),
        ("stop_ids has the token id 300", Request { stop_ids: Some(vec![300]), ..ok() }),
        ("logprobs is 129", Request { logprobs: Some(129), ..ok() }),
        ("prompt_logprobs is 500", Request { prompt_logprobs: Some(500), ..ok() }),
        ("adapter is \"x\"", Request { adapter: Some("x".to_owned()), ..ok() }),
        ("temperature is NaN", Request { sampling: Sampling { temperature: f64::NAN, ..Sampling::default() }, ..ok() }),
        ("top_p is 2", Request { sampling: Sampling { top_p: 2., ..Sampling::default() }, ..ok() }),
    ];
    for (message, request) in cases {
        let error = refusal(&engine, request);
        assert!(error.contains(message), "{error:?} does not contain {message:?}");
    }
    // The engine still works, and a prompt that fills the context can be scored.
    assert_eq!(ask(&engine, request(&vec![1; 512], 0)).usage.completion_tokens, 0);
    assert_eq!(ask(&engine, request(&vec![1; 510], 9)).usage.completion_tokens, 2, "up to the context length");
    assert!(matches!(engine.score(vec![1]), Err(SubmitError::Invalid(_))));
    assert!(matches!(engine.embed(Vec::new(), llm_engine::Pooling::Mean), Err(SubmitError::Invalid(_))));
}

#[test]
fn a_model_with_a_score_head_does_not_generate() {
    let engine = Engine::start(text_model(Head::Sequence), EngineOptions::default()).unwrap();
    assert!(refusal(&engine, request(&[1, 2], 3)).contains("score head"));
}
