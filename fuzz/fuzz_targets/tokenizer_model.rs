//! Loads arbitrary bytes as a SentencePiece `tokenizer.model`. Expected: a tokenizer that encodes and decodes, or an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    llm_fuzz::with_file("tokenizer.model", bytes, |dir| {
        if let Ok(tokenizer) = llm_tokenizer::Tokenizer::load(dir) {
            llm_fuzz::encode_and_decode(&tokenizer);
        }
    });
});
