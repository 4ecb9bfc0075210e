use super::*;

const LOGITS: [f32; 4] = [0., 2., 1., 2.];

fn seeded(sampling: Sampling) -> Sampling {
    Sampling { seed: Some(5), ..sampling }
}

/// The ids of a sampler at the first `count` positions, each from the same logits.
fn ids(sampling: Sampling, logits: &[f32], count: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(&seeded(sampling), logits.len(), 0);
    (0..count).map(|at| sampler.next(&mut logits.to_vec(), at, None).unwrap().id).collect()
}

fn frequencies(sampling: Sampling) -> [f64; 4] {
    let mut counts = [0.; 4];
    ids(sampling, &LOGITS, 20_000).iter().for_each(|id| counts[*id as usize] += 1. / 20_000.);
    counts
}

/// The ids of the distribution, and their probabilities.
fn distribution(sampling: Sampling, logits: &[f32]) -> (Vec<u32>, Vec<f32>) {
    let mut sampler = Sampler::new(&seeded(sampling), logits.len(), 0);
    sampler.distribution(&mut logits.to_vec(), 0).unwrap().into_iter().unzip()
}

#[test]
fn temperature_zero_picks_the_first_of_the_most_likely_tokens() {
    let sampling = Sampling { temperature: 0., ..Sampling::default() };
    assert!(ids(sampling.clone(), &LOGITS, 100).iter().all(|id| *id == 1));
    // The samplers that leave tokens out cannot change it, the bias can.
    let sampling = Sampling { xtc_probability: 1., mirostat_tau: 3., top_k: 2, ..sampling };
    assert_eq!(ids(sampling.clone(), &LOGITS, 1), [1]);
    assert_eq!(ids(Sampling { logit_bias: [(2, 1.5)].into(), ..sampling }, &LOGITS, 1), [2]);
}

#[test]
fn frequencies_follow_the_softmax_at_each_temperature() {
    for temperature in [0.5, 1., 1.5] {
        let weights = LOGITS.map(|l| (f64::from(l) / temperature).exp());
        let total: f64 = weights.iter().sum();
        let observed = frequencies(Sampling { temperature, ..Sampling::default() });
        for (observed, weight) in observed.iter().zip(weights) {
            // four standard errors for 20,000 draws
            assert!((observed - weight / total).abs() < 4. * (0.25f64 / 20_000.).sqrt(), "{temperature}: {observed}");
        }
    }
}

#[test]
fn top_k_and_top_p_keep_only_the_most_likely_tokens() {
    let observed = frequencies(Sampling { top_k: 2, ..Sampling::default() });
    assert!(observed[0] == 0. && observed[2] == 0. && (observed[1] - 0.5).abs() < 0.02);
    let observed = frequencies(Sampling { top_k: 1, ..Sampling::default() });
    assert!(observed[0] + observed[2] + observed[3] == 0.);
    // The two most likely tokens have 0.79 together: top_p 0.7 keeps both, 0.85 the third as well, never the last.
    assert_eq!(frequencies(Sampling { top_p: 0.7, ..Sampling::default() })[2], 0.);
    let observed = frequencies(Sampling { top_p: 0.85, ..Sampling::default() });
    assert!(observed[2] > 0.1 && observed[0] == 0.);
    for top_p in [1e-9, 0.] {
        let observed = frequencies(Sampling { top_p, ..Sampling::default() });
        assert!(observed[0] + observed[2] + observed[3] == 0.);
    }
}

#[test]
fn masked_tokens_are_never_sampled_and_damaged_logits_are_an_error() {
    let logits = [f32::NEG_INFINITY, 0., f32::NEG_INFINITY];
    let hot = Sampling { temperature: 100., ..Sampling::default() };
    assert!(ids(hot.clone(), &logits, 1000).iter().all(|id| *id == 1));
    for damaged in [f32::NAN, f32::INFINITY] {
        let error = Sampler::new(&hot, 2, 0).next(&mut [damaged, 0.], 0, None).unwrap_err();
        assert!(matches!(error, Error::LogitsNotFinite) && !error.is_callers_fault(), "{error}");
    }
    let error = Sampler::new(&hot, 3, 0).next(&mut [0., 1.], 0, None).unwrap_err();
    assert!(error.to_string().contains('3') && !error.is_callers_fault(), "{error}");
}

#[test]
fn bias_bans_and_allowed_ids_choose_the_candidates() {
    let banned = Sampling { banned_ids: vec![1, 3], ..Sampling::default() };
    assert_eq!(distribution(banned.clone(), &LOGITS).0, [0, 2]);
    let allowed = Sampling { allowed_ids: Some(vec![3, 2]), ..Sampling::default() };
    assert_eq!(distribution(allowed.clone(), &LOGITS).0, [2, 3]);
    let none = Sampling { allowed_ids: Some(vec![3]), ..banned };
    let error = Sampler::new(&none, 4, 0).next(&mut LOGITS.to_vec(), 0, None).unwrap_err();
    assert!(matches!(error, Error::NoTokenAllowed), "{error}");
    let biased = Sampling { logit_bias: [(0, 2.), (1, -100.)].into(), ..Sampling::default() };
    let (ids, probabilities) = distribution(biased, &LOGITS);
    assert!(ids.len() == 4 && probabilities[0] == probabilities[3] && probabilities[1] < 1e-30);
}

#[test]
fn end_tokens_are_held_back_until_min_tokens() {
    let sampling = Sampling { temperature: 0., min_tokens: 2, ..Sampling::default() };
    let mut sampler = Sampler::new(&sampling, 4, 0).with_end_ids(&[1, 3]);
    let mut next = |at| sampler.next(&mut LOGITS.to_vec(), at, None).unwrap().id;
    assert_eq!([next(0), next(1), next(2)], [2, 2, 1]);
}

#[test]
fn penalties_count_prompt_and_answer() {
    let sampling = Sampling {
        repetition_penalty: 2.,
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        temperature: 0.,
        processed_logprobs: true,
        ..Sampling::default()
    };
    let mut sampler = Sampler::new(&sampling, 4, 0).with_prompt(&[3, 3]);
    let logits = [-1., 4., 1., 4.];
    // Token 3 of the prompt is halved, so 1 is sampled; then 1 is 2 - 0.75.
    let mut after = |at| sampler.next(&mut logits.to_vec(), at, Some(4)).unwrap();
    assert_eq!(after(0).id, 1);
    let second = after(1);
    let top = second.logprobs.unwrap().top;
    assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [3, 1, 2, 0]);
    assert!((top[0].1 - top[1].1 - 0.75).abs() < 1e-6 && (top[1].1 - top[2].1 - 0.25).abs() < 1e-6);
}

#[test]
fn the_log_probabilities_are_those_of_the_model_unless_processed_ones_are_asked_for() {
    let all = LOGITS.map(|l| f64::from(l).exp()).iter().sum::<f64>().ln();
    let greedy = Sampling { temperature: 0.1, top_k: 1, logit_bias: [(0, 90.)].into(), ..Sampling::default() };
    let token = Sampler::new(&greedy, 4, 0).next(&mut LOGITS.to_vec(), 0, Some(2)).unwrap();
    let logprobs = token.logprobs.unwrap();
    assert_eq!((token.id, logprobs.top.len()), (0, 2));
    assert!((f64::from(logprobs.logprob) + all).abs() < 1e-6);
    assert_eq!((logprobs.top[0].0, logprobs.top[1].0), (1, 3));
    // A client finds the most likely token by equality of the numbers.
    let best = TokenLogprobs::of(&LOGITS, 3, 1).unwrap();
    assert!(best.logprob == best.top[0].1 && best.top.len() == 1);
    let processed = Sampling { processed_logprobs: true, ..greedy };
    let token = Sampler::new(&processed, 4, 0).next(&mut LOGITS.to_vec(), 0, Some(2)).unwrap();
    assert_eq!(token.logprobs, Some(TokenLogprobs { logprob: 0., top: vec![(0, 0.)] }));
    assert_eq!(Sampler::new(&processed, 4, 0).next(&mut LOGITS.to_vec(), 0, None).unwrap().logprobs, None);
    assert!(TokenLogprobs::of(&LOGITS, 4, 0).unwrap_err().is_callers_fault());
}

#[test]
fn rollback_restores_the_state_of_penalties_and_mirostat() {
    let sampling =
        seeded(Sampling { repetition_penalty: 1.7, mirostat_tau: 2., penalty_window: 3, ..Sampling::default() });
    let mut sampler = Sampler::new(&sampling, 4, 0).with_prompt(&[0, 1, 1]);
    let sample = |sampler: &mut Sampler, from: usize| -> Vec<u32> {
        (from..from + 20).map(|at| sampler.next(&mut LOGITS.to_vec(), at, None).unwrap().id).collect()
    };
    sample(&mut sampler, 0);
    let at_20 = sampler.clone();
    let first = sample(&mut sampler, 20);
    sampler.rollback(20);
    assert_eq!(sample(&mut sampler, 20), first);
    // Tokens that are accepted one by one give the same state.
    let mut accepted = at_20;
    for (at, id) in first.iter().enumerate() {
        let distribution = accepted.distribution(&mut LOGITS.to_vec(), 20 + at).unwrap();
        let probability = distribution.iter().find(|(other, _)| other == id).unwrap().1;
        accepted.accept(*id, probability);
    }
    assert_eq!(sample(&mut accepted, 40), sample(&mut sampler, 40));
}
