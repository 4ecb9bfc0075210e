//! Builds a small Qwen3, computes the loss and the gradients of a batch, and saves the model as a Hugging Face folder.
//!
//! ```sh
//! cargo run --release -p llm-model --example custom_model -- [OUTPUT FOLDER]
//! ```

use std::error::Error;
use std::path::Path;

use llm_model::{Batch, Head, Model, ModelConfig, ModelType, QkNorm};

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().nth(1) {
        Some(dir) => build(Path::new(&dir)),
        None => build(&tempfile::tempdir()?.path().join("qwen3-small")),
    }
}

fn build(dir: &Path) -> Result<(), Box<dyn Error>> {
    let config = ModelConfig {
        model_type: ModelType::Qwen3,
        qk_norm: Some(QkNorm::Head),
        vocab_size: 1000,
        hidden_size: 64,
        intermediate_size: 128,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        ..ModelConfig::default()
    };
    let model = Model::init(config, Head::LanguageModel, 42)?;
    println!("{} parameters", model.count().total());

    // Two sequences of four tokens; each label is the token after its input, -100 is ignored.
    let batch = Batch::new(&[vec![1, 2, 3, 4], vec![5, 6, 7, 8]])?;
    let labels = [2, 3, 4, -100, 6, 7, 8, -100];
    let hidden = model.hidden(&batch, None)?.flatten(0, 1)?; // (8, hidden_size)
    let loss = model.cross_entropy(&hidden, &labels)?;
    let gradients = loss.backward()?;
    println!("loss {:.3}, close to ln 1000 = 6.908", loss.to_scalar::<f32>()?);
    println!("gradients of {} tensors", gradients.get_ids().count());

    model.save(dir)?;
    let loaded = Model::load(dir)?;
    println!(
        "{}: {} with {} layers",
        dir.display(),
        loaded.config().model_type.name(),
        loaded.config().num_hidden_layers
    );
    Ok(())
}

#[test]
fn runs() -> Result<(), Box<dyn Error>> {
    build(&tempfile::tempdir()?.path().join("model"))
}
