//! Any bytes as a `config.json`: a shape, or an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(json) = serde_json::from_slice(bytes) {
        let _ = llm_model::families::from_json(&json, "config.json");
    }
    llm_fuzz::with_file("config.json", bytes, |dir| {
        let _ = llm_model::Model::open(dir);
    });
});
