//! Loads 10,000 damaged or malicious files. Each must give an error or a tokenizer, without a panic, a hang, or excessive memory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod mutate;

use llm_tokenizer::{Tokenizer, TrainConfig, train_bpe};

#[test]
fn damaged_tokenizer_files_are_errors_and_use_bounded_memory() {
    let dir = mutate::folder();
    let texts = ["the cat sat on the mat", "the dog sat on the log"];
    let tokenizer = train_bpe(&TrainConfig { vocab_size: 280, min_frequency: 2 }, texts.iter()).unwrap();
    tokenizer.with_default_chat_template().unwrap().save(dir.path()).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let open = || Tokenizer::load(dir.path());
        // A loaded tokenizer encodes and decodes, or returns an error.
        let use_it = |tokenizer: Tokenizer| {
            drop(tokenizer.encode("the cat <|end|> \u{1f408}").map(|ids| tokenizer.decode(&ids)));
        };
        mutate::check(&dir.path().join(name), usize::MAX, open, use_it);
    }
    for name in ["tokenizer.model", "unigram_table.model"] {
        let pieces = mutate::folder();
        let golden: std::path::PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "golden", name].iter().collect();
        std::fs::copy(golden, pieces.path().join("tokenizer.model")).unwrap();
        let open = || Tokenizer::load(pieces.path());
        let use_it = |tokenizer: Tokenizer| drop(tokenizer.encode("the king \u{3000} e\u{301}"));
        mutate::check(&pieces.path().join("tokenizer.model"), usize::MAX, open, use_it);
    }
}
