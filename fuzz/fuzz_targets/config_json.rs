//! Loads arbitrary bytes as a `config.json`, with the weights of a small model of the family that it names.
//! Expected: a model or an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(json) = serde_json::from_slice(bytes) else { return };
    let Ok(described) = llm_model::families::from_json(&json, "config.json") else { return };
    let _ = llm_model::ParamCount::of(&described.config, described.head).total();
    let weights = llm_fuzz::tiny_folder(described.config.model_type).join("model.safetensors");
    llm_fuzz::with_file("config.json", bytes, |dir| {
        std::fs::copy(weights, dir.join("model.safetensors")).expect("copy a small file");
        if let Ok(model) = llm_model::Model::open(dir) {
            llm_fuzz::run(&model);
        }
    });
});
