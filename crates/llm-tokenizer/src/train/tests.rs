//! Tests of tokenizer training. The trainer of the `tokenizers` crate is the oracle of BPE.

use std::path::Path;
use std::sync::Arc;

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split as Pattern, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use super::*;

const TEXTS: [&str; 3] =
    ["the cat sat on the mat", "the dog sat on the log <|end|><|end|><|end|>", "der Hund, die Katze: 猫 🐈"];
const CORPUS: &str = include_str!("../../tests/golden/bpe/corpus.en");

fn train(vocab_size: usize) -> Tokenizer {
    train_bpe(&TrainConfig { vocab_size, min_frequency: 2 }, TEXTS.iter()).unwrap()
}

fn trained(settings: &TrainSettings, texts: &[&str]) -> (Tokenizer, TrainReport) {
    let mut trainer = Trainer::new(settings).unwrap();
    let source: Arc<Path> = Path::new("text.txt").into();
    texts.iter().for_each(|text| trainer.add(*text, &source));
    trainer.finish().unwrap()
}

fn of_kind(kind: Kind, vocab_size: usize) -> TrainSettings {
    TrainSettings { kind, vocab_size, ..TrainSettings::default() }
}

/// What the `tokenizers` crate learns from whole documents.
fn expected(vocab_size: usize, split: Split, texts: &[&str]) -> Tokenizer {
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .special_tokens(SPECIAL.map(|token| AddedToken::from(token, true)).to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build()
        .into();
    let byte_level = ByteLevel::new(false, false, true);
    let mut tokenizer = tokenizers::Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(byte_level));
    if split != Split::Gpt2 {
        let pattern = SplitPattern::Regex(split.pattern().to_owned());
        let pattern = Pattern::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap();
        let steps = vec![pattern.into(), ByteLevel::new(false, false, false).into()];
        tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    }
    tokenizer.with_post_processor(Some(byte_level));
    tokenizer.with_decoder(Some(byte_level));
    tokenizer.train(&mut trainer, texts.iter()).unwrap();
    Tokenizer::from_trained(tokenizer).unwrap()
}

fn merges(tokenizer: &Tokenizer) -> Vec<String> {
    let model = serde_json::to_value(tokenizer.inner.get_model()).unwrap();
    let pair = |pair: &serde_json::Value| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
    model["merges"].as_array().unwrap().iter().map(pair).collect()
}

/// Source code with line ends, indents and long words.
fn program(functions: usize) -> String {
    let function = |i: usize| {
        format!(
            "def f_{i}(x, y):\n    # {}\n    if x == {}:\n        for i in range(y):\n            x += i * {i}\n\n    return x\n\n\n",
            "=".repeat(i % 50),
            i * 7919
        )
    };
    (0..functions).map(function).collect()
}

#[test]
fn training_does_not_depend_on_the_order_of_texts() {
    let many = || (0..200).map(|i| format!("{} {} {}", TEXTS[i % 3], i * 7919, TEXTS[(i * 5) % 3]));
    let config = TrainConfig { vocab_size: 600, min_frequency: 2 };
    let first = train_bpe(&config, many()).unwrap();
    let backwards = train_bpe(&config, many().collect::<Vec<_>>().into_iter().rev()).unwrap();
    assert_eq!(first.fingerprint(), backwards.fingerprint());
    let other = train_bpe(&config, many().skip(100)).unwrap();
    assert_ne!(first.fingerprint(), other.fingerprint(), "different text, same fingerprint");
}

#[test]
fn special_tokens_have_the_first_ids() {
    let tokenizer = train(280);
    for (id, token) in SPECIAL.iter().enumerate() {
        assert_eq!(tokenizer.token_id(token), Some(id as u32), "{token}");
        assert_eq!(tokenizer.token(id as u32).as_deref(), Some(*token));
    }
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()), (Some(0), Some(0), Some(1)));
    assert_eq!(tokenizer.document_end_id(), Some(0));
}

#[test]
fn merges_fill_the_vocabulary_and_shorten_the_encoding() {
    assert_eq!(train(262).vocab_size(), 262);
    assert_eq!(train(270).vocab_size(), 270);
    assert_eq!(train(262).encode("the the").unwrap().len(), 7);
    assert_eq!(train(280).encode("the the").unwrap().len(), 2);
}

#[test]
fn a_vocabulary_below_the_minimum_size_is_an_error() {
    let config = TrainConfig { vocab_size: 261, min_frequency: 2 };
    let error = train_bpe(&config, TEXTS.iter()).unwrap_err().to_string();
    assert!(error.contains("vocab_size = 261") && error.contains("at least 262"), "{error}");
}

#[test]
fn the_merges_of_the_fixture_are_exact() {
    let golden: Vec<&str> = include_str!("../../tests/golden/bpe/merges.txt").lines().collect();
    let settings = TrainSettings { min_frequency: 1, ties: Ties::Bytes, ..of_kind(Kind::Bpe, 262 + golden.len()) };
    assert_eq!(merges(&trained(&settings, &[CORPUS]).0), golden);
}

#[test]
fn bpe_learns_what_the_tokenizers_crate_learns_from_whole_documents() {
    let code = program(400);
    for (vocab_size, split) in [(262 + 900, Split::Gpt2), (600, Split::Llama3), (500, Split::Digits2)] {
        for texts in [&[CORPUS][..], &[&code], &TEXTS] {
            let settings = TrainSettings { split, max_token_length: 1024, ..of_kind(Kind::Bpe, vocab_size) };
            let ours = trained(&settings, texts).0;
            assert_eq!(merges(&ours), merges(&expected(vocab_size, split, texts)), "{split:?}");
            assert_eq!(ours.fingerprint(), expected(vocab_size, split, texts).fingerprint());
        }
    }
}

#[test]
fn training_sees_the_pieces_of_encoding_also_across_lines() {
    let code = program(2000);
    let settings = TrainSettings { split: Split::Gpt4, ..of_kind(Kind::Bpe, 400) };
    let count = |tokenizer: &Tokenizer| tokenizer.encode(&code).unwrap().len();
    let whole = count(&trained(&settings, &[&code]).0);
    let lines: Vec<&str> = code.split_inclusive('\n').collect();
    let cut = count(&trained(&settings, &lines).0);
    assert!(whole < cut, "{whole} tokens after training on documents, {cut} after training on lines");
}

#[test]
fn counts_above_32_bits_do_not_overflow() {
    let mut trainer = Trainer::new(&of_kind(Kind::Bpe, 300)).unwrap();
    trainer.add_counted(&" ".repeat(80), 3_000_000_000);
    trainer.add_counted("x", 3_000_000_000);
    trainer.add_counted("ab", 2_000_000_000);
    let (tokenizer, report) = trainer.finish().unwrap();
    assert_eq!(merges(&tokenizer)[0], "Ġ Ġ");
    assert_eq!(report.pieces, 3);
}

#[test]
fn tokens_are_not_longer_than_asked_and_long_pieces_are_named() {
    let text = format!("{} {}", "a".repeat(5000), "word ".repeat(100));
    let settings = TrainSettings { max_token_length: 8, ..of_kind(Kind::Bpe, 400) };
    let (tokenizer, report) = trained(&settings, &[&text]);
    let longest = (262..tokenizer.vocab_size() as u32).filter_map(|id| tokenizer.token(id)).map(|t| t.len()).max();
    assert_eq!(longest, Some(8));
    assert_eq!(report.longest, Some(LongestPiece { bytes: 5000, source: Path::new("text.txt").into() }));
    assert_eq!((report.documents, report.bytes), (1, text.len() as u64));
}

#[test]
fn byte_kinds_give_the_text_back() {
    let text = "\tdef  f(x):\r\n    return 'é' * 12345 # 日本語 👩‍👩‍👧 \u{0}<|end|> <unk>\n\n\n";
    for (kind, split) in [
        (Kind::Bpe, Split::Gpt2),
        (Kind::Bpe, Split::Gpt4),
        (Kind::Bpe, Split::Digits2),
        (Kind::Unigram, Split::Llama3),
    ] {
        let tokenizer = trained(&TrainSettings { split, ..of_kind(kind, 400) }, &[&CORPUS[..30_000]]).0;
        let dir = tempfile::tempdir().unwrap();
        tokenizer.save(dir.path()).unwrap();
        for tokenizer in [&tokenizer, &Tokenizer::load(dir.path()).unwrap()] {
            assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text, "{kind:?} {split:?}");
        }
        assert_eq!(tokenizer.vocab_size(), 400, "{kind:?}");
    }
}

#[test]
fn every_kind_is_the_same_on_each_run() {
    for (_, kind) in Kind::ALL {
        let run = || trained(&of_kind(kind, 350), &[&CORPUS[..20_000]]).0.fingerprint();
        assert_eq!(run(), run(), "{kind:?}");
    }
}

/// The tokens of a text as the vocabulary spells them.
fn tokens(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    tokenizer.encode(text).unwrap().iter().map(|id| tokenizer.token(*id).unwrap()).collect()
}

#[test]
fn words_are_the_words_of_a_text_book() {
    let tokenizer = trained(&of_kind(Kind::Word, 100), &["Hello, world! Hello, world!"]).0;
    assert_eq!(tokens(&tokenizer, "Hello, world!"), ["Hello", ",", "world", "!"]);
    let ids = tokenizer.encode("Hello, moon!").unwrap();
    assert_eq!(tokens(&tokenizer, "Hello, moon!"), ["Hello", ",", "<unk>", "!"]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "Hello , !");
    assert!(tokenizer.with_default_chat_template().is_ok());
}

#[test]
fn word_piece_divides_unknown_words() {
    let text = "Under the outstanding tree. Under the landing. Outstanding, landing, Under, understand ".repeat(5);
    let tokenizer = trained(&of_kind(Kind::WordPiece, 120), &[&text]).0;
    let found = tokens(&tokenizer, "Understanding");
    assert_eq!(found[0], "Under");
    assert!(found.len() < 6 && found[1..].iter().all(|token| token.starts_with("##")), "{found:?}");
    assert_eq!(tokenizer.decode(&tokenizer.encode("Understanding").unwrap()).unwrap(), "Understanding");
    assert_eq!(tokens(&tokenizer, "猫 tree"), ["<unk>", "tree"]);
}

#[test]
fn characters_are_those_of_the_text() {
    let text = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let tokenizer = trained(&TrainSettings { min_frequency: 1, ..of_kind(Kind::Char, 2048) }, &[text]).0;
    assert_eq!(tokenizer.vocab_size(), SPECIAL.len() + 1 + 65);
    let ids = tokenizer.encode(text).unwrap();
    assert!(ids.iter().copied().eq(7..72), "in the order of the code points: {ids:?}");
    assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    assert_eq!(tokens(&tokenizer, "aé"), ["a", "<unk>"]);
}
