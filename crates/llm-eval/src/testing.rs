//! Models with known predictions, for tests.

use candle_core::{Device, Tensor};
use llm_model::{Head, Model, ModelConfig, Params, Role, TensorSpec};
use llm_tokenizer::{Tokenizer, TrainConfig, train_bpe};

/// A tokenizer trained on `text`, with a chat template.
pub fn tokenizer(text: &str) -> Tokenizer {
    let config = TrainConfig { vocab_size: 400, min_frequency: 1 };
    train_bpe(&config, [text].iter()).unwrap().with_default_chat_template().unwrap()
}

fn config(tokenizer: &Tokenizer) -> ModelConfig {
    ModelConfig {
        vocab_size: tokenizer.vocab_size(),
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 16,
        eos_token_id: Some(tokenizer.chat_format().unwrap().end_of_turn),
        pad_token_id: tokenizer.pad_id(),
        ..ModelConfig::default()
    }
}

/// A random model of one layer with this standard deviation of the weights; 0 gives logits of 0.
pub fn model(tokenizer: &Tokenizer, initializer_range: f64) -> Model {
    let config = ModelConfig { initializer_range, ..config(tokenizer) };
    Model::init(config, Head::LanguageModel, 3).unwrap().frozen().unwrap()
}

/// A bigram model: the logit of token `to` after token `from` is `logit(from, to)`. The hidden state is one-hot; attention and
/// MLP add 0.
pub fn bigram_model(tokenizer: &Tokenizer, logit: impl Fn(u32, u32) -> f32) -> Model {
    let vocab = tokenizer.vocab_size();
    let config =
        ModelConfig { hidden_size: vocab, tie_word_embeddings: false, rms_norm_eps: 1e-12, ..config(tokenizer) };
    let table = |entry: &dyn Fn(u32, u32) -> f32| {
        let rows: Vec<f32> = (0..vocab * vocab).map(|i| entry((i / vocab) as u32, (i % vocab) as u32)).collect();
        Tensor::from_vec(rows, (vocab, vocab), &Device::Cpu).unwrap()
    };
    // The final norm scales a one-hot row to root mean square 1: its entry becomes sqrt(vocab).
    let scale = (vocab as f32).sqrt();
    let tensor = |spec: &TensorSpec| match spec.role {
        Role::Embedding => table(&|i, j| f32::from(u8::from(i == j))),
        Role::Output => table(&|to, from| logit(from, to) / scale),
        role if role.is_norm() => Tensor::ones(&*spec.shape, candle_core::DType::F32, &Device::Cpu).unwrap(),
        _ => Tensor::zeros(&*spec.shape, candle_core::DType::F32, &Device::Cpu).unwrap(),
    };
    let specs = config.tensor_specs(Head::LanguageModel).into_iter();
    let tensors = specs.map(|spec| (spec.name.clone(), tensor(&spec)));
    Model::new(config.clone(), Head::LanguageModel, Params::new(tensors.collect())).unwrap()
}
