//! Ten thousand mutated files for each loader: the result is a model or an error, never a panic, a hang or memory out of
//! proportion to the size of the file.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "../../llm-tokenizer/tests/mutate/mod.rs"]
mod mutate;

use std::fs;

use llm_model::gguf::{GgufFile, Metadata, Value};
use llm_model::{Batch, BlockFormat, Head, LoraConfig, Model, ModelConfig, WeightDtype};

/// One test, because memory is measured for the whole process.
#[test]
fn a_mutated_model_file_gives_an_error_or_a_model() {
    let config = ModelConfig {
        vocab_size: 64,
        hidden_size: 32,
        intermediate_size: 32,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        eos_token_id: Some(0),
        ..ModelConfig::default()
    };
    let model = Model::init(config, Head::LanguageModel, 7).unwrap().frozen().unwrap();
    let dir = mutate::folder();
    let dir = dir.path();
    model.save(dir).unwrap();
    // A loaded model can run or returns an error.
    let used = |model: Model| drop(Batch::new(&[vec![1, 2, 3]]).and_then(|batch| model.forward(&batch)));

    let header = |bytes: &[u8]| 8 + usize::from_le_bytes(*bytes.first_chunk().unwrap());
    let path = dir.join("model.safetensors");
    mutate::check(&path, header(&fs::read(&path).unwrap()), || Model::open(dir), used);
    mutate::check(&path, header(&fs::read(&path).unwrap()), || Model::load(dir), used);
    mutate::check(&dir.join("config.json"), usize::MAX, || Model::open(dir), used);

    let adapter = dir.join("adapter");
    let lora = LoraConfig { use_dora: true, ..LoraConfig::default() };
    model.with_lora(&lora, 1).unwrap().save_adapter(&adapter, "base").unwrap();
    let open = || {
        let mut model = model.clone();
        model.load_adapter("mutated", &adapter)?;
        model.use_adapter(Some("mutated")).map(|()| model)
    };
    let path = adapter.join("adapter_model.safetensors");
    mutate::check(&path, header(&fs::read(&path).unwrap()), open, used);
    mutate::check(&adapter.join("adapter_config.json"), usize::MAX, open, used);

    let mut tokenizer = Metadata::new();
    let tokens: Vec<String> = (0..64).map(|i| format!("token {i}")).collect();
    tokenizer.insert("tokenizer.ggml.tokens".to_owned(), Value::Texts(tokens));
    tokenizer.insert("tokenizer.ggml.scores".to_owned(), Value::Floats(vec![0.; 64]));
    tokenizer.insert("tokenizer.ggml.token_type".to_owned(), Value::Integers(vec![1; 64]));
    for (name, kind) in [("f16.gguf", WeightDtype::F16), ("q8_0.gguf", WeightDtype::Quantized(BlockFormat::Q8_0))] {
        let path = dir.join(name);
        model.save_gguf(&path, Some(kind), tokenizer.clone()).unwrap();
        // Only mutate the header: any tensor data is valid.
        let last = fs::read(&path).unwrap().windows(18).rposition(|w| w == b"output_norm.weight").unwrap();
        mutate::check(&path, last + 64, || Model::from_gguf(&GgufFile::open(&path)?), used);
    }
    // Keys that Llama does not have.
    for family in ["mixtral", "gemma3_text", "phi3", "gpt2"] {
        let golden: std::path::PathBuf =
            [env!("CARGO_MANIFEST_DIR"), "tests", "golden", "families", family].iter().collect();
        let folder = dir.join(family);
        fs::create_dir(&folder).unwrap();
        for name in ["config.json", "model.safetensors"] {
            fs::copy(golden.join(name), folder.join(name)).unwrap();
        }
        mutate::check(&folder.join("config.json"), usize::MAX, || Model::open(&folder), used);
    }
}
