//! The bounded queue, requests that nobody waits for, and the end of the engine.

use std::time::{Duration, Instant};

use llm_engine::{Engine, EngineOptions, Error, Event, Request, SubmitError};
use llm_model::Head;

use crate::{ask, collect, engine, request, text_model};

/// Waits until `condition` is true; false after ten seconds.
fn soon(condition: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > Duration::from_secs(10) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

#[test]
fn a_request_without_receiver_ends_and_the_others_are_answered() {
    let engine = engine();
    let mut dropped = engine.submit(request(&[1, 2], 500)).unwrap();
    assert!(matches!(dropped.blocking_next(), Some(Event::Text { .. })));
    drop(dropped);
    assert_eq!(ask(&engine, request(&[1, 2], 5)).usage.completion_tokens, 5);
    assert!(soon(|| engine.stats().cancelled == 1));
    assert_eq!((engine.stats().running, engine.stats().pages_used), (0, 0));
}

#[test]
fn a_full_queue_refuses_at_once() {
    let options = EngineOptions { max_queue: 3, ..EngineOptions::default() };
    let engine = Engine::start(text_model(Head::LanguageModel), options).unwrap();
    let (mut accepted, mut refused) = (Vec::new(), 0);
    for _ in 0..200 {
        let start = Instant::now();
        match engine.submit(Request { choices: 2, ..request(&[1; 300], 100) }) {
            Ok(generation) => accepted.push(generation),
            Err(SubmitError::Busy { retry_after }) => {
                refused += 1;
                assert!(retry_after >= Duration::from_secs(1) && retry_after <= Duration::from_mins(1));
                assert!(start.elapsed() < Duration::from_millis(50));
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(refused > 0 && engine.stats().refused == refused);
    for generation in accepted {
        assert_eq!(collect(generation, 2).usage.completion_tokens, 200);
    }
}

#[test]
fn a_reader_that_stops_reading_is_ended() {
    let options = EngineOptions { stall_timeout: Duration::from_millis(50), ..EngineOptions::default() };
    let engine = Engine::start(text_model(Head::LanguageModel), options).unwrap();
    let stalled = engine.submit(request(&[1, 2], 500)).unwrap();
    assert!(soon(|| engine.stats().cancelled == 1));
    assert_eq!(ask(&engine, request(&[1, 2], 5)).usage.completion_tokens, 5);
    drop(stalled);
}

#[test]
fn shutdown_lets_requests_end_and_takes_no_new_ones() {
    let engine = engine();
    let running: Vec<_> = (0..3).map(|_| engine.submit(request(&[1, 2], 20)).unwrap()).collect();
    engine.shutdown(Duration::from_mins(1));
    assert!(matches!(engine.submit(request(&[1], 1)), Err(SubmitError::ShuttingDown)));
    for generation in running {
        assert_eq!(collect(generation, 1).usage.completion_tokens, 20);
    }
}

#[test]
fn requests_that_are_left_at_the_deadline_of_a_shutdown_fail() {
    let engine = engine();
    // Nobody reads, so they cannot end.
    let mut left: Vec<_> = (0..3).map(|_| engine.submit(request(&[1, 2], 500)).unwrap()).collect();
    engine.shutdown(Duration::from_millis(20));
    for generation in &mut left {
        let last = std::iter::from_fn(|| generation.blocking_next()).last();
        assert!(matches!(last, Some(Event::Failed(Error::ShutDown) | Event::Text { .. }) | None), "{last:?}");
    }
}

#[test]
fn damaged_weights_fail_the_request_and_not_the_engine() {
    let mut model = text_model(Head::LanguageModel);
    let config = llm_model::ModelConfig { initializer_range: 3e38, ..crate::config() }; // infinite weights
    model.model = llm_model::Model::init(config, Head::LanguageModel, 7).unwrap().frozen().unwrap();
    let engine = Engine::start(model, EngineOptions::default()).unwrap();
    for failed in 1..=3 {
        let mut generation = engine.submit(request(&[1, 2, 3], 5)).unwrap();
        let last = std::iter::from_fn(|| generation.blocking_next()).last();
        assert!(matches!(last, Some(Event::Failed(Error::LogitsNotFinite))), "{last:?}");
        assert_eq!((engine.stats().failed, engine.stats().pages_used), (failed, 0));
    }
}
