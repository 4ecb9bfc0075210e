//! The fast encoder gives the ids of the `tokenizers` crate, which encodes when offsets are asked for.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::PathBuf;

use llm_tokenizer::{Kind, Split, Tokenizer, TrainSettings, Trainer};

const CORPUS: &str = include_str!("golden/bpe/corpus.en");

/// The ids of the `tokenizers` crate.
fn expected(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode_with_offsets(text).unwrap().into_iter().map(|(id, _)| id).collect()
}

/// Encodes enough text for the fast encoder to take over.
fn warmed_up(tokenizer: Tokenizer) -> Tokenizer {
    (0..4).for_each(|_| assert!(!tokenizer.encode(CORPUS).unwrap().is_empty()));
    tokenizer
}

#[test]
fn the_ids_of_trained_tokenizers_do_not_change() {
    let texts = [
        CORPUS.to_owned(),
        String::new(),
        "  \n\n\t x\r\n  y 1234567 it's IT'S 'ſ".to_owned(),
        "日本語の文章 ภาษาไทย العربية हिन्दी ÄÖÜ e\u{301} ﬁ 👩‍👩‍👧 \u{0}\u{FFFD}\u{10FFFF}".repeat(20),
        "<|endoftext|> <|user|>hello<|end|>".to_owned(),
        "a".repeat(3000) + &"ab".repeat(2000) + &"the".repeat(500),
    ];
    for split in [Split::Gpt2, Split::Gpt4, Split::Digits2] {
        for corpus in [CORPUS.to_owned(), texts[3].repeat(5) + &texts[5]] {
            let settings = TrainSettings { split, vocab_size: 1000, ..TrainSettings::default() };
            let mut trainer = Trainer::new(&settings).unwrap();
            trainer.add(corpus, &PathBuf::new().into());
            let tokenizer = warmed_up(trainer.finish().unwrap().0);
            for text in &texts {
                // The second time the pieces come from the cache.
                for _ in 0..2 {
                    assert_eq!(tokenizer.encode(text).unwrap(), expected(&tokenizer, text), "{split:?}");
                }
            }
            assert_eq!(tokenizer.decode(&tokenizer.encode(&texts[3]).unwrap()).unwrap(), texts[3]);
        }
    }
}

#[test]
fn other_kinds_are_encoded_as_before() {
    for (name, kind) in Kind::ALL {
        let mut trainer = Trainer::new(&TrainSettings { kind, vocab_size: 400, ..TrainSettings::default() }).unwrap();
        trainer.add(&CORPUS[..20_000], &PathBuf::new().into());
        let tokenizer = warmed_up(trainer.finish().unwrap().0);
        let text = "The man said: 12 words, né?";
        assert_eq!(tokenizer.encode(text).unwrap(), expected(&tokenizer, text), "{name}");
    }
}

#[test]
fn threads_share_the_encoder() {
    let mut trainer = Trainer::new(&TrainSettings::default()).unwrap();
    trainer.add(CORPUS, &PathBuf::new().into());
    let tokenizer = warmed_up(trainer.finish().unwrap().0);
    let ids = expected(&tokenizer, CORPUS);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(tokenizer.encode(CORPUS).unwrap(), ids));
        }
    });
}

/// Folders of published tokenizers, separated by `:`, in `TOKENIZERS`; a folder of texts in any encoding in `TEXTS`, such as the
/// `udhr` corpus of NLTK.
#[test]
fn the_ids_of_published_tokenizers_do_not_change() {
    let (Some(folders), Some(texts)) = (std::env::var_os("TOKENIZERS"), std::env::var_os("TEXTS")) else {
        eprintln!("skipped: TOKENIZERS and TEXTS name no folders");
        return;
    };
    let files: Vec<PathBuf> = std::fs::read_dir(texts).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!files.is_empty());
    for folder in std::env::split_paths(&folders) {
        let tokenizer = warmed_up(Tokenizer::load(&folder).unwrap());
        let mut bytes = 0;
        for file in files.iter().filter(|file| file.is_file()) {
            let text = String::from_utf8_lossy(&std::fs::read(file).unwrap()).into_owned();
            let found = tokenizer.encode(&text).unwrap();
            assert!(found == expected(&tokenizer, &text), "{}: {}", folder.display(), file.display());
            bytes += text.len();
        }
        eprintln!("{}: {} files, {bytes} bytes are the same", folder.display(), files.len());
    }
}
