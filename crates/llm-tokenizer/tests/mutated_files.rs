//! Ten thousand damaged or hostile files: an error or a tokenizer, and never a panic, a hang, or memory out of proportion.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod mutate;

use llm_tokenizer::{Tokenizer, TrainConfig, train_bpe};

#[test]
fn a_damaged_tokenizer_is_an_error_and_costs_nothing() {
    let dir = mutate::folder();
    let texts = ["the cat sat on the mat", "the dog sat on the log"];
    let tokenizer = train_bpe(&TrainConfig { vocab_size: 280, min_frequency: 2 }, texts.iter()).unwrap();
    tokenizer.with_default_chat_template().unwrap().save(dir.path()).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let open = || Tokenizer::from_dir(dir.path());
        // What was taken for a tokenizer is one, or says why not.
        let used = |tokenizer: Tokenizer| {
            drop(tokenizer.encode("the cat <|end|> \u{1f408}").map(|ids| tokenizer.decode(&ids)));
        };
        mutate::check(&dir.path().join(name), usize::MAX, open, used);
    }
    let pieces = mutate::folder();
    let golden: std::path::PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "tests", "golden", "tokenizer.model"].iter().collect();
    std::fs::copy(golden, pieces.path().join("tokenizer.model")).unwrap();
    let open = || Tokenizer::from_dir(pieces.path());
    let used = |tokenizer: Tokenizer| drop(tokenizer.encode("the king"));
    mutate::check(&pieces.path().join("tokenizer.model"), usize::MAX, open, used);
}
