//! Time of sampling. Run with `cargo test --release -p llm-engine --test sampling speed -- --ignored --nocapture`.

use std::time::Instant;

use llm_engine::{Sampler, Sampling};
use rayon::prelude::*;

use crate::logits;

const ROWS: usize = 16;
const VOCAB: usize = 49_152;

#[test]
#[ignore = "a measurement"]
fn sixteen_rows_of_a_large_vocabulary() {
    let rows: Vec<Vec<f32>> = (0..ROWS as u64).map(|seed| logits(seed, VOCAB, 2.5)).collect();
    let default = Sampling { seed: Some(1), ..Sampling::default() };
    let cases = [
        ("greedy", Sampling { temperature: 0., ..default.clone() }, None),
        ("temperature 0.7", Sampling { temperature: 0.7, ..default.clone() }, None),
        ("temperature 0.7, log-probabilities", Sampling { temperature: 0.7, ..default.clone() }, Some(5)),
        ("top_k 40", Sampling { top_k: 40, ..default.clone() }, None),
        ("top_p 0.9", Sampling { top_p: 0.9, ..default.clone() }, None),
        ("top_p 0.95, temperature 1.5", Sampling { top_p: 0.95, temperature: 1.5, ..default.clone() }, None),
        ("typical_p 0.9", Sampling { typical_p: 0.9, ..default.clone() }, None),
        ("min_p 0.05", Sampling { min_p: 0.05, ..default.clone() }, None),
        (
            "llama.cpp's defaults",
            Sampling {
                samplers: "llama.cpp".parse().unwrap(),
                temperature: 0.8,
                top_k: 40,
                top_p: 0.95,
                min_p: 0.05,
                ..default.clone()
            },
            None,
        ),
    ];
    for (name, sampling, logprobs) in cases {
        let mut samplers: Vec<Sampler> = (0..ROWS).map(|choice| Sampler::new(&sampling, VOCAB, choice)).collect();
        let mut copies = rows.clone();
        let mut times: Vec<f64> = (0..30)
            .map(|position| {
                copies.iter_mut().zip(&rows).for_each(|(copy, row)| copy.copy_from_slice(row));
                let start = Instant::now();
                samplers.par_iter_mut().zip(&mut copies).for_each(|(sampler, row)| {
                    sampler.next(row, position, logprobs).unwrap();
                });
                start.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        times.sort_by(f64::total_cmp);
        println!("{name}: {:.2} ms for {ROWS} rows of {VOCAB}, best {:.2} (median of 30)", times[15], times[0]);
    }
}
