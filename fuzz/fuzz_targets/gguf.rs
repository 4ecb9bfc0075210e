//! Any bytes as a GGUF file: a model, or an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    llm_fuzz::with_file("model.gguf", bytes, |dir| {
        if let Ok(file) = llm_model::gguf::GgufFile::open(&dir.join("model.gguf")) {
            let _ = llm_model::Model::from_gguf(&file);
        }
    });
});
