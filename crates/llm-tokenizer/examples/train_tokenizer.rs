//! Trains a tokenizer, renders a conversation with its chat template, and shows which tokens a model is trained on.
//!
//! ```sh
//! cargo run --release -p llm-tokenizer --example train_tokenizer -- [TEXT FILE]
//! ```

use std::error::Error;

use llm_tokenizer::{ChatMessage, Tokenizer, TrainConfig, TrainOn, train_bpe};

const TEXT: &str = "The cat sat on the mat. The dog sat on the log. Who sat on the mat? The cat sat on the mat.";

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().nth(1) {
        Some(path) => train(&std::fs::read_to_string(path)?),
        None => train(TEXT),
    }
}

fn train(text: &str) -> Result<(), Box<dyn Error>> {
    let config = TrainConfig { vocab_size: 300, min_frequency: 2 };
    let tokenizer = train_bpe(&config, [text].iter())?.with_default_chat_template()?;

    // A folder that transformers can read.
    let dir = tempfile::tempdir()?;
    tokenizer.save(dir.path())?;
    let tokenizer = Tokenizer::load(dir.path())?;

    let ids = tokenizer.encode("The cat sat.")?;
    let tokens: Vec<String> = ids.iter().filter_map(|&id| tokenizer.token(id)).collect();
    println!("{} tokens in the vocabulary; \"The cat sat.\" is {tokens:?}", tokenizer.vocab_size());

    let chat = [ChatMessage::new("user", "Who sat?"), ChatMessage::new("assistant", "The cat.")];
    println!("{}", tokenizer.render_chat(&chat, false)?);
    let examples = tokenizer.encode_for_training(&chat, TrainOn::All)?;
    let tokens = examples.into_iter().flat_map(|example| example.ids.into_iter().zip(example.loss_mask));
    let learned: Vec<u32> = tokens.filter_map(|(id, trained)| trained.then_some(id)).collect();
    println!("the loss counts {} tokens: {:?}", learned.len(), tokenizer.decode(&learned)?);
    Ok(())
}

#[test]
fn runs() -> Result<(), Box<dyn Error>> {
    train(TEXT)
}
