//! Loads arbitrary bytes as a GGUF file. Expected: a model with its tokenizer, or an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    llm_fuzz::with_file("model.gguf", bytes, |dir| {
        let path = dir.join("model.gguf");
        let Ok(file) = llm_model::gguf::GgufFile::open(&path) else { return };
        if let Ok(model) = llm_model::Model::from_gguf(&file) {
            llm_fuzz::run(&model);
        }
        if let Ok(text) = llm_engine::TextModel::open(&path) {
            llm_fuzz::encode_and_decode(&text.tokenizer);
        }
    });
});
