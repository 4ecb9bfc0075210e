//! Compares two models on minimal pairs, with confidence intervals over independent sentence frames.
//!
//! ```sh
//! cargo run --release -p llm-eval --example compare_models -- [MODEL FOLDER] [MODEL FOLDER]
//! ```

use std::collections::BTreeMap;
use std::error::Error;

use llm_eval::probe_scores;
use llm_eval::stats::{paired_difference, wilson_of};
use llm_model::{Head, Model, ModelConfig};
use llm_synthetic::{Phenomenon, Split, World, WorldConfig};
use llm_tokenizer::{Tokenizer, TrainConfig, train_bpe};

fn main() -> Result<(), Box<dyn Error>> {
    let folders: Vec<String> = std::env::args().skip(1).collect();
    match &folders[..] {
        [one, other, ..] => compare(&Tokenizer::load(one)?, &[Model::open(one)?, Model::open(other)?]),
        _ => compare_untrained(),
    }
}

fn compare(tokenizer: &Tokenizer, models: &[Model; 2]) -> Result<(), Box<dyn Error>> {
    let world = World::new(WorldConfig::default());
    let probes = world.probes(Phenomenon::Agreement, 40);
    let scores = [probe_scores(&models[0], tokenizer, &probes)?, probe_scores(&models[1], tokenizer, &probes)?];
    for (name, scores) in ["first", "second"].iter().zip(&scores) {
        let (mean, interval) = (scores.iter().sum::<f64>() / scores.len() as f64, wilson_of(scores));
        println!("{name} model: {mean:.3}, 95 % interval {:.3} to {:.3}", interval.low, interval.high);
    }
    // The cells of one frame are not independent, so the bootstrap resamples frames.
    let mut frames = BTreeMap::new();
    let clusters: Vec<usize> = probes
        .iter()
        .map(|probe| {
            let next = frames.len();
            *frames.entry(&probe.key).or_insert(next)
        })
        .collect();
    let difference = paired_difference(&scores[0], &scores[1], &clusters, 42)?;
    println!("difference over {} frames: {:.3} to {:.3}", frames.len(), difference.low, difference.high);
    Ok(())
}

/// Two models with random weights, which score at chance.
fn compare_untrained() -> Result<(), Box<dyn Error>> {
    let world = World::new(WorldConfig { corpus_bytes: 20_000, ..WorldConfig::default() });
    let corpus = world.corpus(Split::Train);
    let config = TrainConfig { vocab_size: 400, ..TrainConfig::default() };
    let tokenizer = train_bpe(&config, corpus.iter().map(String::as_str))?;
    let config = ModelConfig { vocab_size: 400, hidden_size: 48, num_hidden_layers: 1, ..ModelConfig::default() };
    let model = |seed| Model::init(config.clone(), Head::LanguageModel, seed)?.frozen();
    compare(&tokenizer, &[model(1)?, model(2)?])
}

#[test]
fn runs() -> Result<(), Box<dyn Error>> {
    compare_untrained()
}
