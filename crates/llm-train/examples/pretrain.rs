//! Pre-trains a small model from nothing: corpus, tokenizer, token shards, training, text.
//!
//! ```sh
//! cargo run --release -p llm-train --example pretrain -- [STEPS]
//! ```

use std::error::Error;

use llm_data::prepare;
use llm_engine::{TextModel, TextOptions};
use llm_model::ModelConfig;
use llm_synthetic::{Split, World, WorldConfig};
use llm_tokenizer::{TrainConfig, train_bpe};
use llm_train::recipes::{PretrainInputs, PretrainRecipe, pretrain};
use llm_train::run::{Event, RunOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let steps = std::env::args().nth(1).map_or(Ok(10), |steps| steps.parse())?;
    train(steps)
}

fn train(steps: u64) -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let (tokenizer_dir, shards, run) =
        (dir.path().join("tokenizer"), dir.path().join("shards"), dir.path().join("run"));

    let world = World::new(WorldConfig { corpus_bytes: 50_000, ..WorldConfig::default() });
    let (train, validation) = (world.corpus(Split::Train), world.corpus(Split::HeldOut));
    let config = TrainConfig { vocab_size: 500, ..TrainConfig::default() };
    let tokenizer = train_bpe(&config, train.iter().map(String::as_str))?;
    tokenizer.save(&tokenizer_dir)?;
    prepare(&tokenizer, &[("train", &train), ("held_out", &validation)], &shards, &mut |_| ())?;

    let model = ModelConfig {
        hidden_size: 64,
        intermediate_size: 128,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        ..ModelConfig::default()
    };
    let recipe = PretrainRecipe { steps, batch_size: 4, seq_len: 64, model, ..PretrainRecipe::default() };
    let mut show = |event: Event| {
        if let Event::Progress { done, message } = event {
            println!("{done}: {message}");
        }
    };
    let inputs = PretrainInputs { model: None, tokenizer: tokenizer_dir, data: vec![shards] };
    let outcome = pretrain(&recipe, &inputs, &run, RunOptions { observer: &mut show, ..RunOptions::default() })?;
    println!("{} steps in {:.1} s", outcome.steps, outcome.seconds);

    // The run is a Hugging Face folder, with metrics.jsonl beside the model.
    let model = TextModel::load(&run)?;
    let options = TextOptions { max_new_tokens: 20, ..TextOptions::default() };
    println!("{:?}", model.complete(&model.document_ids("The cat")?, &options, |_| true)?.text);
    Ok(())
}

#[test]
fn runs() -> Result<(), Box<dyn Error>> {
    train(5)
}
