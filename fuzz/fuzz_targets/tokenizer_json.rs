//! Loads arbitrary bytes as a `tokenizer.json`. Expected: a tokenizer that encodes and decodes, or an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    llm_fuzz::with_file("tokenizer.json", bytes, |dir| {
        if let Ok(tokenizer) = llm_tokenizer::Tokenizer::load(dir) {
            llm_fuzz::encode_and_decode(&tokenizer);
            let _ = tokenizer.to_gguf(1 << 10);
        }
    });
});
