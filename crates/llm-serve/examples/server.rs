//! Serves a model until Enter is pressed. Without a model it serves one with random weights, which writes nonsense.
//!
//! ```sh
//! cargo run --release -p llm-serve --example server -- runs/lifecycle/aligned
//! ```

use std::error::Error;
use std::time::Duration;

use llm_engine::{Engine, EngineOptions, TextModel};
use llm_model::{Head, Model, ModelConfig};
use llm_serve::{ServeOptions, Server};
use llm_tokenizer::{TrainConfig, train_bpe};

fn main() -> Result<(), Box<dyn Error>> {
    let model = match std::env::args().nth(1) {
        Some(path) => TextModel::open(path)?,
        None => random_model()?,
    };
    let server = start(model)?;
    println!("http://{}/ shows a chat page, http://{0}/v1 is the OpenAI API; Enter stops", server.address());
    std::io::stdin().read_line(&mut String::new())?;
    server.shutdown(Duration::from_secs(10));
    Ok(())
}

fn start(model: TextModel) -> Result<Server, Box<dyn Error>> {
    let engine = Engine::start(model, EngineOptions::default())?;
    let options = ServeOptions { max_new_tokens: Some(500), ..ServeOptions::new("example") };
    Ok(Server::start(engine, "127.0.0.1:0".parse()?, options)?)
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
    let server = start(random_model()?)?;
    let models = ureq::get(format!("http://{}/v1/models", server.address())).call()?.body_mut().read_to_string()?;
    assert!(models.contains("\"id\":\"example\""), "{models}");
    server.shutdown(Duration::from_secs(10));
    Ok(())
}
