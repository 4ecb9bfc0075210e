//! Compares the ids of a `tokenizer.model` with those of the `sentencepiece` library (`golden/make_sentencepiece.py`, `golden/make_unigram.py`).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::PathBuf;

use llm_tokenizer::Tokenizer;
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden", name].iter().collect()
}

#[test]
fn ids_equal_those_of_sentencepiece_and_decode_to_the_text() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(golden("tokenizer.model"), dir.path().join("tokenizer.model")).unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.bos_id(), tokenizer.eos_id()), (500, Some(1), Some(2)));
    let expected: Vec<Value> = serde_json::from_slice(&fs::read(golden("expected.json")).unwrap()).unwrap();
    for case in expected {
        let text = case["text"].as_str().unwrap();
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
    // Saving writes a tokenizer.json with the same behaviour.
    let saved = tempfile::tempdir().unwrap();
    tokenizer.save(saved.path()).unwrap();
    let again = Tokenizer::load(saved.path()).unwrap();
    assert_eq!(again.encode("the king").unwrap(), tokenizer.encode("the king").unwrap());
}

#[test]
fn ids_of_unigram_models_equal_those_of_sentencepiece() {
    let expected: Value = serde_json::from_slice(&fs::read(golden("unigram.json")).unwrap()).unwrap();
    for (name, size, bos) in [("unigram_table", 400, None), ("unigram_plain", 700, Some(1))] {
        let dir = tempfile::tempdir().unwrap();
        fs::copy(golden(&format!("{name}.model")), dir.path().join("tokenizer.model")).unwrap();
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        assert_eq!((tokenizer.vocab_size(), tokenizer.bos_id()), (size, bos), "{name}");
        let saved = tempfile::tempdir().unwrap();
        tokenizer.save(saved.path()).unwrap();
        let again = Tokenizer::load(saved.path()).unwrap();
        for case in expected[name].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            assert_eq!(tokenizer.encode(text).unwrap(), ids, "{name}: {text:?}");
            assert_eq!(again.encode(text).unwrap(), ids, "{name}, saved: {text:?}");
            // Characters that are not in the vocabulary are lost without byte fallback.
            if name == "unigram_plain" {
                assert_eq!(tokenizer.decode(&ids).unwrap(), text);
            } else if !case["decoded"].as_str().unwrap().contains('\u{2047}') {
                assert_eq!(tokenizer.decode(&ids).unwrap(), case["decoded"], "{text:?}");
            }
        }
    }
}

#[test]
fn control_pieces_and_byte_pieces_are_not_found_in_a_text() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(golden("unigram_plain.model"), dir.path().join("tokenizer.model")).unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    for text in ["a </s> b", "a <unk> b"] {
        let ids = tokenizer.encode(text).unwrap();
        assert!(!ids.contains(&0) && !ids.contains(&2), "{text}: {ids:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap().replace(' ', ""), text.replace(' ', ""));
    }
    let id = tokenizer.token_id("<turn>").unwrap();
    assert!(tokenizer.encode("the<turn>king").unwrap().contains(&id));
}

#[test]
fn unsupported_settings_are_errors_that_name_the_setting() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.model");
    let good = fs::read(golden("tokenizer.model")).unwrap();
    let with = |extra: &[u8]| {
        // If a field occurs twice, the last value is used.
        fs::write(&path, [&good[..], extra].concat()).unwrap();
        Tokenizer::load(dir.path()).unwrap_err().to_string()
    };
    for (extra, part) in [
        (&[0x12, 2, 0x18, 3][..], "\"model_type\" is 3"),
        (&[0x12, 3, 0xc0, 1, 1], "treat_whitespace_as_suffix"),
        (&[0x1a, 2, 0x20, 1], "remove_extra_whitespaces"),
        (&[0x1a, 3, 0x12, 1, 0], "normalized by a table"),
        (&[0x12, 200], "truncated"),
    ] {
        let message = with(extra);
        assert!(message.contains("tokenizer.model") && message.contains(part), "{part}: {message}");
    }
}
