//! Loads arbitrary bytes as the `model.safetensors` of a small model. Expected: the model, or an error.
//!
//! Three families cover the three tensor layouts in files: unchanged (Llama), transposed (GPT-2), fused q, k, v (GPT-NeoX).
#![no_main]

use llm_model::ModelType::{Gpt2, GptNeox, Llama};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    llm_fuzz::with_file("model.safetensors", bytes, |dir| {
        let Ok(tensors) = llm_model::read_safetensors(&dir.join("model.safetensors")) else { return };
        let has_prefix = |prefix: &str| tensors.keys().any(|name| name.starts_with(prefix));
        let family = if has_prefix("transformer.") {
            Gpt2
        } else if has_prefix("gpt_neox.") {
            GptNeox
        } else {
            Llama
        };
        let config = llm_fuzz::tiny_folder(family).join("config.json");
        std::fs::copy(config, dir.join("config.json")).expect("copy a small file");
        for model in [llm_model::Model::open(dir), llm_model::Model::load(dir)].into_iter().flatten() {
            llm_fuzz::run(&model);
        }
    });
});
