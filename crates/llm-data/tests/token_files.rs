//! Token files of llm.c and Megatron-LM: `golden/make_token_files.py` writes some with numpy.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::fs;
use std::path::{Path, PathBuf};

use llm_data::{
    ExportFormat, ShardWriter, TokenDataset, TokenDtype, export_shards, for_each_token_document, is_token_file,
};
use llm_tokenizer::{Tokenizer, TrainConfig, train_bpe};

const DOCUMENTS: [&[u32]; 3] = [&[5, 6, 7], &[8], &[9, 10, 11, 12, 299]];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The documents of a file with the separator 0.
fn read(path: &Path, vocab_size: usize) -> Result<Vec<Vec<u32>>, String> {
    let mut all = Vec::new();
    let read = for_each_token_document(path, (0, vocab_size), &mut |ids| {
        all.push(ids);
        Ok(())
    });
    read.map(|()| all).map_err(|error| error.to_string())
}

/// A tokenizer of this size whose end-of-document token has the id 0.
fn tokenizer(vocab_size: usize) -> Tokenizer {
    let words: String = (0..vocab_size).map(|i| format!("{i} ")).collect();
    let tokenizer = train_bpe(&TrainConfig { vocab_size, min_frequency: 1 }, [words].iter()).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.document_end_id()), (vocab_size, Some(0)));
    tokenizer
}

#[test]
fn files_written_with_numpy_are_read() {
    for name in ["gpt2.bin", "megatron-u16.bin", "megatron-u16.idx", "megatron-u16", "megatron-sentences.idx"] {
        assert!(is_token_file(golden(name)), "{name}");
        assert_eq!(read(&golden(name), 300).unwrap(), DOCUMENTS, "{name}");
    }
    let last: &[u32] = &[70_000, 128_255];
    assert_eq!(read(&golden("llama3.bin"), 128_256).unwrap(), [&DOCUMENTS[..], &[last]].concat());
    assert!(!is_token_file(golden("make_token_files.py")) && !is_token_file(golden("none")));
}

#[test]
fn exported_files_have_the_bytes_that_numpy_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (tokenizer, shards) = (tokenizer(300), dir.path().join("shards"));
    let mut writer = ShardWriter::create(&tokenizer, &shards, &["train", "held_out"]).unwrap();
    DOCUMENTS.iter().try_for_each(|ids| writer.write_ids("train", ids, ids.len())).unwrap();
    writer.finish().unwrap();
    for (format, names) in [
        (ExportFormat::LlmC, &[("train.bin", "gpt2.bin")][..]),
        (ExportFormat::Megatron, &[("train.bin", "megatron-u16.bin"), ("train.idx", "megatron-u16.idx")]),
    ] {
        let out = dir.path().join(format!("{format:?}"));
        assert_eq!(export_shards(&shards, format, &out).unwrap(), ["train"], "the other split is empty");
        for (ours, theirs) in names {
            assert!(fs::read(out.join(ours)).unwrap() == fs::read(golden(theirs)).unwrap(), "{format:?} {ours}");
        }
        assert_eq!(fs::read_dir(&out).unwrap().count(), names.len());
        let message = export_shards(&shards, format, &out).unwrap_err().to_string();
        assert!(message.ends_with("already exists and is not empty; choose another folder"), "{message}");
    }
}

/// A vocabulary of more than 65,536 tokens: ids of four bytes.
#[test]
fn large_vocabularies_survive_the_round_trip() {
    let dir = tempfile::tempdir().unwrap();
    let small = dir.path().join("tokenizer");
    tokenizer(300).save(&small).unwrap();
    let file = small.join("tokenizer.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    vocab.extend((300..70_001).map(|id| (format!("unused {id}"), id.into())));
    fs::write(&file, json.to_string()).unwrap();
    let tokenizer = Tokenizer::load(&small).unwrap();
    assert_eq!(tokenizer.vocab_size(), 70_001);

    let documents: Vec<Vec<u32>> =
        (1..200_u32).map(|i| (1..=i % 17 + 1).map(|k| k * i * 353 % 70_000 + 1).collect()).collect();
    assert!(documents.iter().flatten().any(|id| *id > 65_536));
    let write = |documents: &[Vec<u32>], out: &Path| {
        let mut writer = ShardWriter::create(&tokenizer, out, &["train"]).unwrap();
        documents.iter().try_for_each(|ids| writer.write_ids("train", ids, ids.len())).unwrap();
        writer.finish().unwrap()
    };
    let shards = dir.path().join("shards");
    assert_eq!(write(&documents, &shards).dtype, TokenDtype::U32);
    let tokens = TokenDataset::open(&shards, "train").unwrap().tokens();
    for format in [ExportFormat::LlmC, ExportFormat::Megatron] {
        let out = dir.path().join(format!("{format:?}"));
        export_shards(&shards, format, &out).unwrap();
        let read = read(&out.join("train.bin"), 70_001).unwrap();
        assert!(read == documents, "{format:?}");
        let again = dir.path().join(format!("{format:?} again"));
        write(&read, &again);
        assert!(TokenDataset::open(&again, "train").unwrap().tokens() == tokens, "{format:?}");
        for name in llm_files::list_files(&shards).unwrap() {
            assert!(fs::read(shards.join(&name)).unwrap() == fs::read(again.join(&name)).unwrap(), "{name}");
        }
    }
}

#[test]
fn damaged_and_unknown_files_are_errors_that_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let copy = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(golden(name)).unwrap();
        change(&mut bytes);
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let message = |path: &Path| {
        let message = read(path, 300).unwrap_err();
        assert!(message.contains(&*path.file_stem().unwrap().to_string_lossy()), "{message}");
        message
    };
    assert!(
        message(&copy("gpt2.bin", &|bytes| bytes.truncate(1040))).contains("its header says 12 token ids, 1048 bytes")
    );
    assert!(message(&copy("gpt2.bin", &|bytes| bytes[4] = 9)).contains("an unknown version"));
    assert!(
        message(&copy("gpt2.bin", &|bytes| bytes[0] = 9)).contains("neither the header of a token file of llm.c nor")
    );
    assert!(message(&golden("llama3.bin")).contains("token id 70000 is outside the vocabulary of 300"));

    let index = copy("megatron-u16.idx", &|_| ());
    assert!(message(&index).contains("no such file"), "without .bin");
    copy("megatron-u16.bin", &|bytes| bytes.truncate(20));
    assert!(message(&index).contains("positions outside of"));
    copy("megatron-u16.bin", &|_| ());
    read(&index, 300).unwrap();
    let length = fs::read(&index).unwrap().len();
    for cut in [5, 17, 33, 40, length - 1] {
        copy("megatron-u16.idx", &|bytes| bytes.truncate(cut));
        message(&index);
    }
    copy("megatron-u16.idx", &|bytes| bytes[17] = 6);
    assert!(message(&index).contains("the type 6, which are no token ids"));
    for at in 18..length {
        // Any count, length, position or boundary of 0xff… is refused, and never a panic.
        copy("megatron-u16.idx", &|bytes| bytes[at] = 0xff);
        message(&index);
    }
}
