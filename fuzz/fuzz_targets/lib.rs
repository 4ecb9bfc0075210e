//! Functions that the fuzz targets share: temporary files for the fuzzed bytes, and a small model of each family.

use std::path::Path;

use llm_model::ModelType;
use llm_model::{Activation, AttentionBias, Batch, ExpertsConfig, Head, Model, ModelConfig};
use llm_model::{NormKind, NormPlacement, QkNorm};
use llm_tokenizer::{ChatMessage, Tokenizer};

/// Writes `bytes` to the file `name` in a new temporary folder (in `/dev/shm` if that exists), and calls `load` with the folder.
pub fn with_file(name: &str, bytes: &[u8], load: impl FnOnce(&Path)) {
    let shm = Path::new("/dev/shm");
    let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
    let dir = dir.expect("create a temporary folder");
    std::fs::write(dir.path().join(name), bytes).expect("write a small file");
    load(dir.path());
}

/// Runs a forward pass of a loaded model; errors are ignored, panics are what the fuzzer looks for.
pub fn run(model: &Model) {
    let _ = Batch::new(&[vec![1, 2, 3], vec![0]]).and_then(|batch| model.forward(&batch));
}

/// Encodes and decodes with a loaded tokenizer; errors are ignored.
pub fn encode_and_decode(tokenizer: &Tokenizer) {
    let text = "a text,  <s> l'\u{e9}t\u{e9} 12\n\u{1f408}";
    let _ = tokenizer.encode(text).map(|ids| tokenizer.decode(&ids));
    if let Ok(ids) = tokenizer.encode_with_special(text) {
        let mut stream = tokenizer.stream();
        for id in ids {
            let _ = stream.push(id);
        }
        let _ = stream.finish();
    }
    let _ = tokenizer.encode_chat(&[ChatMessage::new("user", text)], true);
}

/// The smallest model of the family, so that most bytes of its files are structure rather than weights.
pub fn tiny(model_type: ModelType) -> Model {
    let base = ModelConfig {
        model_type,
        vocab_size: 8,
        hidden_size: 8,
        intermediate_size: 4,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        max_position_embeddings: 8,
        bos_token_id: Some(0),
        eos_token_id: Some(0),
        ..ModelConfig::default()
    };
    let layer_normed = ModelConfig {
        norm: NormKind::Layer,
        attention_bias: AttentionBias::All,
        mlp_bias: true,
        gated_mlp: false,
        num_key_value_heads: 2,
        hidden_act: Activation::GeluPytorchTanh,
        ..base.clone()
    };
    let sandwich = ModelConfig {
        norm: NormKind::RmsPlusOne,
        norm_placement: NormPlacement::Sandwich,
        hidden_act: Activation::GeluPytorchTanh,
        scale_embeddings: true,
        query_pre_attn_scalar: Some(4.),
        sliding_window: Some(4),
        ..base.clone()
    };
    let experts =
        ExpertsConfig { num_experts: 2, num_experts_per_tok: 1, moe_intermediate_size: 4, ..ExpertsConfig::default() };
    let config = match model_type {
        ModelType::Gpt2 => ModelConfig { learned_positions: true, ..layer_normed },
        ModelType::GptNeox => ModelConfig { parallel_residual: true, hidden_act: Activation::Gelu, ..layer_normed },
        ModelType::Gemma2 => {
            let (attention, output) = (Some(50.), Some(30.));
            ModelConfig { attn_logit_softcapping: attention, final_logit_softcapping: output, ..sandwich }
        }
        ModelType::Gemma3Text => {
            ModelConfig { qk_norm: Some(QkNorm::Head), rope_local_theta: Some(10_000.), ..sandwich }
        }
        ModelType::Mixtral => ModelConfig { experts: Some(experts), ..base },
        ModelType::Qwen3Moe => ModelConfig { experts: Some(experts), qk_norm: Some(QkNorm::Head), ..base },
        ModelType::Qwen2 => ModelConfig { attention_bias: AttentionBias::Qkv, ..base },
        ModelType::Qwen3 => ModelConfig { qk_norm: Some(QkNorm::Head), ..base },
        ModelType::Olmo2 => ModelConfig { qk_norm: Some(QkNorm::Whole), norm_placement: NormPlacement::Post, ..base },
        _ => base,
    };
    Model::init(config, Head::LanguageModel, 1).and_then(|model| model.frozen()).expect("initialise a small model")
}

/// The folder of the model of [`tiny`], written once per process.
pub fn tiny_folder(model_type: ModelType) -> &'static Path {
    use std::collections::HashMap;
    use std::sync::Mutex;
    static MADE: Mutex<Option<HashMap<String, &'static Path>>> = Mutex::new(None);
    let mut made = MADE.lock().expect("no other thread panicked");
    made.get_or_insert_default().entry(model_type.name()).or_insert_with(|| {
        let dir = std::env::temp_dir().join("llm-fuzz").join(model_type.name());
        tiny(model_type).save(&dir).expect("save a small model");
        Box::leak(dir.into_boxed_path())
    })
}
