//! Any bytes as a `tokenizer.json`: a tokenizer that encodes, or an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    llm_fuzz::with_file("tokenizer.json", bytes, |dir| {
        if let Ok(tokenizer) = llm_tokenizer::Tokenizer::from_dir(dir) {
            let _ = tokenizer.encode("a text <s> \u{1f408}").map(|ids| tokenizer.decode(&ids));
        }
    });
});
