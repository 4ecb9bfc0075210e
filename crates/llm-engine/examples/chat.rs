//! Answers a question with a model, word by word. Without a model it uses one with random weights, which writes nonsense.
//!
//! ```sh
//! cargo run --release -p llm-engine --example chat -- runs/lifecycle/aligned "What is the capital of France?"
//! ```

use std::error::Error;
use std::io::Write;

use llm_engine::{Sampling, TextModel, TextOptions};
use llm_model::{Head, Model, ModelConfig};
use llm_tokenizer::{ChatMessage, TrainConfig, train_bpe};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [path, question, ..] => answer(&TextModel::open(path)?, question),
        _ => answer(&random_model()?, "Who sat on the mat?"),
    }
}

fn answer(model: &TextModel, question: &str) -> Result<(), Box<dyn Error>> {
    // A library error says whether the request or the machine is to blame; a server would answer 400 or 500.
    let prompt = model.chat_ids(&[ChatMessage::new("user", question)])?;
    let sampling = Sampling { temperature: 0.7, top_k: 40, ..Sampling::default() };
    let options = TextOptions { max_new_tokens: 60, sampling, ..TextOptions::default() };
    let reply = model.complete(&prompt, &options, |piece| {
        print!("{piece}");
        std::io::stdout().flush().is_ok()
    })?;
    println!("\n[{} prompt tokens, {} new tokens]", prompt.len(), reply.tokens);

    let too_long = vec![1; model.model.config().max_position_embeddings];
    if let Err(error) = model.complete(&too_long, &options, |_| true) {
        println!("{} error: {error}", if error.is_callers_fault() { "request" } else { "internal" });
    }
    Ok(())
}

fn random_model() -> Result<TextModel, Box<dyn Error>> {
    let config = TrainConfig { vocab_size: 280, min_frequency: 2 };
    let tokenizer = train_bpe(&config, ["the cat sat on the mat"].iter())?.with_default_chat_template()?;
    let config = ModelConfig {
        vocab_size: 280,
        hidden_size: 48,
        num_hidden_layers: 1,
        max_position_embeddings: 128,
        ..ModelConfig::default()
    };
    Ok(TextModel { model: Model::init(config, Head::LanguageModel, 1)?.frozen()?, tokenizer })
}

#[test]
fn runs() -> Result<(), Box<dyn Error>> {
    answer(&random_model()?, "Who sat?")
}
