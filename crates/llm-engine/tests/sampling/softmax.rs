//! Frequencies of samples against the softmax.

use llm_engine::{Sampler, Sampling};

use crate::logits;

const VOCAB: usize = 60;
const DRAWS: usize = 40_000;

/// Pearson's statistic of draws at `temperature` against the softmax at `expected`, as a quantile of the standard normal distribution
/// (Wilson and Hilferty 1931). Draws are at one position of many answers, or at many positions of one.
fn deviation(row: &[f32], temperature: f64, expected: f64, by_choice: bool) -> f64 {
    let sampling = Sampling { temperature, seed: Some(11), ..Sampling::default() };
    let mut counts = vec![0f64; row.len()];
    let mut one = Sampler::new(&sampling, row.len(), 0);
    for draw in 0..DRAWS {
        let mut row = row.to_vec();
        let token = match by_choice {
            true => Sampler::new(&sampling, row.len(), draw).next(&mut row, 3, None),
            false => one.next(&mut row, draw, None),
        };
        counts[token.unwrap().id as usize] += 1.;
    }
    let weights: Vec<f64> = row.iter().map(|&x| (f64::from(x) / expected).exp()).collect();
    let total: f64 = weights.iter().sum();
    // Tokens that are expected less than 5 times share a bin.
    let (mut statistic, mut bins, mut rare) = (0., 0., (0., 0.));
    for (count, weight) in counts.iter().zip(&weights) {
        let expected = weight / total * DRAWS as f64;
        if expected < 5. {
            rare = (rare.0 + count, rare.1 + expected);
        } else {
            statistic += (count - expected).powi(2) / expected;
            bins += 1.;
        }
    }
    if rare.1 > 0.5 {
        statistic += (rare.0 - rare.1).powi(2) / rare.1;
        bins += 1.;
    }
    let (freedom, share) = (bins - 1., 2. / (9. * (bins - 1.)));
    ((statistic / freedom).cbrt() - (1. - share)) / f64::sqrt(share)
}

#[test]
fn samples_pass_chi_square_at_each_temperature() {
    let row = logits(3, VOCAB, 1.);
    for temperature in [0.2, 0.7, 1., 1.5, 2.] {
        for by_choice in [false, true] {
            let deviation = deviation(&row, temperature, temperature, by_choice);
            assert!(deviation < 3.1, "temperature {temperature}: {deviation} standard deviations"); // one in a thousand
        }
    }
}

/// Negative control: the test tells a temperature from one that is 15 % higher.
#[test]
fn chi_square_rejects_another_temperature() {
    let row = logits(3, VOCAB, 1.);
    for temperature in [0.2, 0.7, 1., 1.5, 2.] {
        let deviation = deviation(&row, temperature, temperature * 1.15, false);
        assert!(deviation > 3.1, "temperature {temperature}: {deviation} standard deviations");
    }
}

#[test]
fn temperature_zero_is_exactly_argmax() {
    let sampling = Sampling { temperature: 0., ..Sampling::default() };
    for seed in 0..300 {
        let mut row = logits(seed, 997, 2.);
        let best = (0..997).fold(0, |best, id| if row[id] > row[best] { id } else { best });
        if seed % 3 == 0 {
            row[996] = row[best]; // the first of equal ones
        }
        assert_eq!(Sampler::new(&sampling, 997, 7).next(&mut row, seed as usize, None).unwrap().id, best as u32);
    }
}

/// An answer is the same in whatever order its positions, and those of other answers, are computed.
#[test]
fn interruptions_and_other_answers_do_not_change_an_answer() {
    let sampling = Sampling { seed: Some(9), xtc_probability: 0.5, top_p: 0.95, ..Sampling::default() };
    let rows: Vec<Vec<f32>> = (0..40).map(|at| logits(at, 500, 1.5)).collect();
    let answer = |choice: usize, order: &mut dyn Iterator<Item = usize>| -> Vec<u32> {
        let mut ids = vec![0; rows.len()];
        order.for_each(|at| {
            ids[at] = Sampler::new(&sampling, 500, choice).next(&mut rows[at].clone(), at, None).unwrap().id;
        });
        ids
    };
    let straight: Vec<Vec<u32>> = (0..4).map(|choice| answer(choice, &mut (0..40))).collect();
    let mut kept: Vec<Sampler> = (0..4).map(|choice| Sampler::new(&sampling, 500, choice)).collect();
    for at in 0..40 {
        for choice in [2, 0, 3, 1] {
            assert_eq!(kept[choice].next(&mut rows[at].clone(), at, None).unwrap().id, straight[choice][at]);
        }
    }
    assert_eq!(answer(2, &mut (0..40).rev()), straight[2]);
    assert!(straight.iter().enumerate().all(|(i, ids)| !straight[..i].contains(ids)), "answers differ");
    let other = Sampling { seed: Some(10), ..sampling.clone() };
    let other: Vec<u32> =
        (0..40).map(|at| Sampler::new(&other, 500, 0).next(&mut rows[at].clone(), at, None).unwrap().id).collect();
    assert_ne!(other, straight[0]);
}

/// Every token has the same chance wherever it is: a permutation of the logits permutes the distribution, without ties.
#[test]
fn a_permutation_of_the_vocabulary_permutes_the_distribution() {
    let settings = [
        Sampling { top_k: 33, ..Sampling::default() },
        Sampling { top_p: 0.8, ..Sampling::default() },
        Sampling { typical_p: 0.7, ..Sampling::default() },
        Sampling { min_p: 0.05, temperature: 0.6, ..Sampling::default() },
        Sampling { top_n_sigma: 1.2, xtc_probability: 1., xtc_threshold: 0.01, ..Sampling::default() },
    ];
    let row = logits(5, 700, 2.);
    let moved = |id: usize| (id * 211 + 5) % 700;
    let mut permuted = vec![0.; 700];
    row.iter().enumerate().for_each(|(id, &logit)| permuted[moved(id)] = logit);
    for settings in settings {
        let mut ours = Sampler::new(&settings, 700, 0);
        let straight = ours.distribution(&mut row.clone(), 0).unwrap();
        let other: std::collections::BTreeMap<u32, f32> =
            ours.distribution(&mut permuted.clone(), 0).unwrap().into_iter().collect();
        assert!(straight.len() == other.len() && straight.len() < 700, "{settings:?}");
        assert!(straight.iter().all(|(id, p)| (other[&(moved(*id as usize) as u32)] - p).abs() < 1e-6), "{settings:?}");
    }
}
