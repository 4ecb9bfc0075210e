//! Loads arbitrary bytes as an adapter: the first line is `adapter_config.json`, the rest `adapter_model.safetensors`.
#![no_main]

use std::sync::LazyLock;

use llm_model::Model;
use llm_model::ModelType::Llama;

static BASE: LazyLock<Model> = LazyLock::new(|| llm_fuzz::tiny(Llama));

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else { return };
    llm_fuzz::with_file("adapter_config.json", &bytes[..end], |dir| {
        std::fs::write(dir.join("adapter_model.safetensors"), &bytes[end + 1..]).expect("write a small file");
        let mut model = BASE.clone();
        if model.load_adapter("fuzzed", dir).and_then(|()| model.use_adapter(Some("fuzzed"))).is_ok() {
            llm_fuzz::run(&model);
        }
    });
});
