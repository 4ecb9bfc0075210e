use super::*;
use crate::{ChatMessage, TrainConfig, train_bpe};

const TEXTS: [&str; 5] =
    ["the cat sat on the mat 2024", "It's  12345\n\n we'll", "日本語 👩‍👧 e\u{301}", "", " <|user|> the<|end|>"];

fn trained() -> Tokenizer {
    let config = TrainConfig { vocab_size: 320, min_frequency: 2 };
    train_bpe(&config, ["the cat sat on the mat", "the dog's log 20 20"].iter()).unwrap()
}

#[test]
fn a_byte_level_tokenizer_survives_the_round_trip() {
    let tokenizer = trained().with_default_chat_template().unwrap();
    let vocabulary = tokenizer.to_vocabulary(330).unwrap();
    assert_eq!((vocabulary.model.as_str(), vocabulary.pre.as_deref()), ("gpt2", Some("gpt-2")));
    assert_eq!((vocabulary.tokens.len(), &vocabulary.token_type[4..7]), (330, &[CONTROL, CONTROL, NORMAL][..]));
    assert_eq!((vocabulary.tokens[329].as_str(), vocabulary.token_type[329]), ("[PAD329]", UNUSED));
    let back = Tokenizer::from_vocabulary(&vocabulary).unwrap();
    for text in TEXTS {
        assert_eq!(back.encode(text).unwrap(), tokenizer.encode(text).unwrap(), "{text}");
        assert_eq!(back.encode_with_special(text).unwrap(), tokenizer.encode_with_special(text).unwrap(), "{text}");
        assert_eq!(back.decode(&back.encode(text).unwrap()).unwrap(), text);
    }
    let chat = [ChatMessage::new("user", "the cat?")];
    assert_eq!(back.encode_chat(&chat, true).unwrap(), tokenizer.encode_chat(&chat, true).unwrap());
    assert_eq!((back.bos_id(), back.eos_id(), back.pad_id()), (tokenizer.bos_id(), tokenizer.eos_id(), Some(1)));
    assert_eq!(back.to_vocabulary(330).unwrap(), vocabulary);
}

#[test]
fn every_named_pre_tokenizer_splits_digits_as_expected() {
    let mut vocabulary = trained().to_vocabulary(320).unwrap();
    for (name, ..) in PRE_TOKENIZERS {
        vocabulary.pre = Some(name.to_owned());
        let tokenizer = Tokenizer::from_vocabulary(&vocabulary).unwrap();
        let digits = tokenizer.encode("2020").unwrap().len();
        let expected = match name {
            "smollm" | "qwen2" => 4,              // one by one
            "llama-bpe" | "dbrx" | "llama3" => 3, // "202" is "20" and "2"
            _ => 2,
        };
        assert_eq!(digits, expected, "{name}");
        let again = tokenizer.to_vocabulary(320).unwrap().pre.unwrap();
        let first = |name: &str| PRE_TOKENIZERS.iter().find(|s| s.0 == name).map(|s| (s.1, s.2, s.3));
        assert_eq!(first(&again), first(name));
    }
}

/// A `SentencePiece` vocabulary of bytes, letters, and words with different scores.
fn pieces() -> GgufVocabulary {
    let mut vocabulary = GgufVocabulary {
        model: "llama".to_owned(),
        unknown_token_id: Some(0),
        bos_token_id: Some(1),
        eos_token_id: Some(2),
        add_bos_token: Some(true),
        ..GgufVocabulary::default()
    };
    let mut add = |token: String, kind: i64, score: f32| {
        vocabulary.tokens.push(token);
        vocabulary.token_type.push(kind);
        vocabulary.scores.push(score);
    };
    add("<unk>".to_owned(), UNKNOWN, 0.);
    ["<s>", "</s>"].iter().for_each(|token| add((*token).to_owned(), CONTROL, 0.));
    (0..=255).for_each(|byte| add(format!("<0x{byte:02X}>"), BYTE, 0.));
    for (score, token) in ["at", "\u{2581}t", "he", "\u{2581}the", "cat", "\u{2581}cat"].iter().enumerate() {
        add((*token).to_owned(), NORMAL, -(score as f32));
    }
    for letter in "\u{2581}theca".chars() {
        add(letter.to_string(), NORMAL, -100.);
    }
    vocabulary
}

#[test]
fn tokens_are_merged_by_score_with_byte_fallback() {
    let vocabulary = pieces();
    let tokenizer = Tokenizer::from_vocabulary(&vocabulary).unwrap();
    let tokens = |text: &str| -> Vec<String> {
        tokenizer.encode(text).unwrap().iter().map(|id| tokenizer.token(*id).unwrap()).collect()
    };
    assert_eq!(tokens("the cat"), ["\u{2581}the", "\u{2581}cat"]);
    assert_eq!(tokens("that"), ["\u{2581}t", "h", "at"]);
    assert_eq!(tokens("é"), ["\u{2581}", "<0xC3>", "<0xA9>"]);
    for text in ["the cat", "hat é 猫 the", "  two\n"] {
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
    }
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(1), Some(2)));

    let written = tokenizer.to_vocabulary(vocabulary.tokens.len()).unwrap();
    assert_eq!((&written.tokens, &written.token_type), (&vocabulary.tokens, &vocabulary.token_type));
    assert_eq!((written.add_space_prefix, written.add_bos_token), (Some(true), Some(true)));
    let back = Tokenizer::from_vocabulary(&written).unwrap();
    for text in ["the cat that he at", "heat catch", "é the"] {
        assert_eq!(back.encode(text).unwrap(), tokenizer.encode(text).unwrap(), "{text}");
    }
}

#[test]
fn ids_that_no_token_has_are_dropped_with_a_warning() {
    let mut vocabulary = pieces();
    assert!(vocabulary.drop_unknown_ids().is_empty());
    (vocabulary.eos_token_id, vocabulary.padding_token_id) = (Some(9999), Some(151_643));
    let mut metadata = vocabulary.clone().into_metadata();
    let warnings = vocabulary.drop_unknown_ids();
    assert!(warnings.len() == 2 && warnings[0].contains("\"tokenizer.ggml.eos_token_id\" is 9999"), "{warnings:?}");
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()), (Some(1), None, None));
    // A token that occurs twice is refused: text could get another id.
    if let Some(llm_files::gguf::Value::Texts(tokens)) = metadata.get_mut("tokenizer.ggml.tokens") {
        tokens[270] = tokens[260].clone();
    }
    assert!(Tokenizer::from_gguf(&metadata).is_err());
}

#[test]
fn added_tokens_that_remove_spaces_give_a_warning() {
    assert!(trained().lost_in_gguf().is_empty());
    let text = trained().inner.to_string(false).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    json["added_tokens"][2]["lstrip"] = json!(true);
    let inner: tokenizers::Tokenizer = json.to_string().parse().unwrap();
    let tokenizer = Tokenizer::new(inner, default_config(), None).unwrap();
    let token = json["added_tokens"][2]["content"].as_str().unwrap();
    let [warning] = &tokenizer.lost_in_gguf()[..] else { panic!("not one warning") };
    assert!(warning.contains(token) && warning.contains("lstrip"), "{warning}");
    assert!(tokenizer.to_gguf(320).is_ok());
}

#[test]
fn unsupported_tokenizers_are_errors_that_name_the_key() {
    let with = |change: fn(&mut Value)| {
        let text = trained().inner.to_string(false).unwrap();
        let mut json = serde_json::from_str(&text).unwrap();
        change(&mut json);
        let inner: tokenizers::Tokenizer = json.to_string().parse().unwrap();
        Tokenizer::new(inner, default_config(), None).unwrap().to_vocabulary(320).unwrap_err().to_string()
    };
    let message = with(|json| json["pre_tokenizer"]["add_prefix_space"] = json!(true));
    assert!(message.contains("pre_tokenizer") && message.contains("gpt-2"), "{message}");
    assert!(with(|json| json["normalizer"] = json!({"type": "Lowercase"})).contains("normalizer"));
    assert!(with(|json| json["pre_tokenizer"] = json!({"type": "Whitespace"})).contains("Whitespace"));
    assert!(with(|json| json["model"]["dropout"] = json!(0.5)).contains("dropout"));
    assert!(trained().to_vocabulary(100).unwrap_err().to_string().contains("100"));

    let from = |change: fn(&mut GgufVocabulary)| {
        let mut vocabulary = pieces();
        change(&mut vocabulary);
        Tokenizer::from_vocabulary(&vocabulary).unwrap_err().to_string()
    };
    assert!(from(|v| v.model = "bert".to_owned()).contains("bert"));
    assert!(from(|v| v.eos_token_id = Some(9999)).contains("9999"));
    assert!(from(|v| v.tokens[5] = "<s>".to_owned()).contains("twice"));
    assert!(from(|v| v.scores.truncate(9)).contains("scores"));
    assert!(from(|v| v.tokens[270] = "a".repeat(2000)).contains("2000 bytes"));
    let many = |v: &mut GgufVocabulary| {
        v.tokens.extend((1..900).map(|n| "z".repeat(n)));
        v.scores.resize(v.tokens.len(), 0.);
    };
    assert!(from(many).contains("too many merges"));
    let gpt2 = |v: &mut GgufVocabulary| v.model = "gpt2".to_owned();
    let mut vocabulary = pieces();
    gpt2(&mut vocabulary);
    vocabulary.pre = Some("klingon".to_owned());
    assert!(Tokenizer::from_vocabulary(&vocabulary).unwrap_err().to_string().contains("klingon"));
}
