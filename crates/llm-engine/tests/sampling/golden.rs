//! Distributions that `tests/golden/make_sampling.py` wrote.

use std::collections::BTreeMap;
use std::sync::Arc;

use llm_engine::{Sampler, Sampling};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    source: String,
    settings: Sampling,
    prompt: Vec<u32>,
    steps: Vec<Step>,
    #[serde(default)]
    texts: Vec<String>,
}

#[derive(Deserialize)]
struct Step {
    logits: Vec<f32>,
    distribution: Vec<(u32, f64)>,
    accept: u32,
}

fn cases() -> Vec<Case> {
    serde_json::from_str::<Golden>(include_str!("../golden/sampling.json")).unwrap().cases
}

/// The largest difference to the expected probabilities; infinite if other tokens are left.
fn difference(case: &Case, settings: &Sampling) -> f64 {
    let vocab = case.steps[0].logits.len();
    let texts: Arc<[Vec<u8>]> = case.texts.iter().map(|text| text.clone().into_bytes()).collect();
    let mut sampler = Sampler::new(settings, vocab, 0).with_token_texts(&texts).with_prompt(&case.prompt);
    let mut largest = 0f64;
    for (position, step) in case.steps.iter().enumerate() {
        let expected: BTreeMap<u32, f64> = step.distribution.iter().copied().collect();
        let ours: BTreeMap<u32, f32> =
            sampler.distribution(&mut step.logits.clone(), position).unwrap().into_iter().collect();
        // A probability that f64 tells from 0 and f32 does not.
        let is_left = |id: &u32| expected.get(id).is_some_and(|p| *p > 1e-30);
        if ours.iter().any(|(id, p)| *p > 1e-30 && !is_left(id))
            || expected.keys().any(|id| is_left(id) && !ours.contains_key(id))
        {
            return f64::INFINITY;
        }
        for (id, expected) in &expected {
            largest = largest.max((f64::from(*ours.get(id).unwrap_or(&0.)) - expected).abs());
        }
        sampler.accept(step.accept, ours.get(&step.accept).copied().unwrap_or(1.));
    }
    largest
}

/// f32 logits up to 20 give probabilities to about 2e-6.
const TOLERANCE: f64 = 1e-5;

#[test]
fn distributions_are_those_of_transformers_and_of_derivations_in_f64() {
    let mut sources = BTreeMap::new();
    for case in cases() {
        let difference = difference(&case, &case.settings);
        assert!(difference < TOLERANCE, "{difference}: {} {:?}", case.source, case.settings);
        *sources.entry(case.source).or_insert(0) += 1;
    }
    assert!(sources["transformers"] >= 50 && sources["f64"] >= 40, "{sources:?}");
}

/// Negative control: without its sampler a case has another distribution, but for those that keep all tokens.
#[test]
fn without_the_sampler_the_distributions_differ() {
    let cases = cases();
    let plain = Sampling::default();
    let same = cases.iter().filter(|case| difference(case, &plain) < TOLERANCE).count();
    assert!(same < cases.len() / 5, "{same} of {}", cases.len());
}
