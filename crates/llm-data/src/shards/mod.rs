//! Token shards: a folder with `manifest.json`, and for each split binary files of little-endian token ids and a document index.
//!
//! Each document ends with one separator, the end-of-document token of the tokenizer. docs/data.md describes the format to the byte.

mod dataset;
mod export;
mod llm_c;
mod manifest;
mod megatron;
mod pieces;
mod token_files;
mod writer;

use std::path::Path;

pub use dataset::TokenDataset;
pub use export::{ExportFormat, export_shards};
use llm_tokenizer::Tokenizer;
pub use manifest::{FileInfo, Manifest, SplitInfo, TokenDtype};
pub use token_files::{for_each_token_document, is_token_file};
pub use writer::ShardWriter;

use crate::Result;

/// Bytes of text that [`prepare`] gives to the writer at once.
const BATCH_BYTES: usize = 8 << 20;

/// Tokenizes the documents of each split (name, documents) and writes token shards to `dir`. Documents without text are left out.
/// Uses all threads; the files do not depend on their number. Calls `on_bytes` with the bytes of text tokenized so far.
///
/// For documents that do not fit into memory use [`ShardWriter`].
pub fn prepare(
    tokenizer: &Tokenizer,
    splits: &[(&str, &[String])],
    dir: impl AsRef<Path>,
    on_bytes: &mut dyn FnMut(u64),
) -> Result<Manifest> {
    let names: Vec<&str> = splits.iter().map(|(name, _)| *name).collect();
    let mut writer = ShardWriter::create(tokenizer, dir, &names)?;
    for (name, documents) in splits {
        let mut bytes = 0;
        let same_batch = |document: &String, _: &String| {
            bytes += document.len();
            if bytes >= BATCH_BYTES {
                bytes = 0;
            }
            bytes > 0
        };
        for batch in documents.chunk_by(same_batch) {
            writer.write(&batch.iter().map(|document| (*name, document)).collect::<Vec<_>>())?;
            on_bytes(writer.bytes());
        }
    }
    writer.finish()
}

#[cfg(test)]
pub(crate) mod tests {
    use llm_tokenizer::{TrainConfig, train_bpe};
    use sha2::{Digest, Sha256};

    use super::pieces::pieces;
    use super::*;

    pub(crate) fn tokenizer(documents: &[&str]) -> Tokenizer {
        let config = TrainConfig { vocab_size: 300, ..TrainConfig::default() };
        train_bpe(&config, documents.iter().copied()).unwrap()
    }

    pub(crate) fn dataset(documents: &[&str]) -> (tempfile::TempDir, Tokenizer) {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = tokenizer(documents);
        let documents: Vec<String> = documents.iter().map(|&d| d.to_owned()).collect();
        prepare(&tokenizer, &[("train", &documents)], dir.path(), &mut |_| ()).unwrap();
        (dir, tokenizer)
    }

    #[test]
    fn each_document_in_the_shards_ends_with_one_separator_and_empty_ones_are_left_out() {
        let (dir, tokenizer) = dataset(&["one two", "", "three é"]);
        let data = TokenDataset::open(dir.path(), "train").unwrap();
        let end = tokenizer.document_end_id().unwrap();
        let parts: Vec<String> =
            data.tokens().split(|&id| id == end).map(|ids| tokenizer.decode(ids).unwrap()).collect();
        assert_eq!(parts, ["one two", "three é", ""]);
        assert_eq!((data.bytes(), data.documents(), data.manifest().separator_id), (15, 2, end));
        for (number, text) in ["one two", "three é"].into_iter().enumerate() {
            let range = data.document(number).unwrap();
            assert!(range.clone().all(|token| data.document_of(token) == number));
            let (last, ids) = (data.ids(range.end - 1..range.end), data.ids(range.start..range.end - 1));
            assert_eq!((last, tokenizer.decode(&ids).unwrap()), (vec![end], text.to_owned()));
        }
        assert_eq!((data.document(2), data.document_of(data.len())), (None, 2));
    }

    #[test]
    fn long_documents_cut_into_pieces_have_the_same_ids() {
        let lines = ["one two  three", "", "  spaces \t", "it's 1984, é!", "\u{3000}wide", "...", "x"];
        let text: String = (0..60_000).map(|i| format!("{} {}\n", lines[i * i % 7], i % 11)).collect();
        let blank: String = "word \n\n ".repeat(60_000);
        let documents = [text, blank, "short".to_owned()];
        let config = TrainConfig { vocab_size: 400, ..TrainConfig::default() };
        let tokenizer = train_bpe(&config, documents.iter().map(|d| &d[..2000.min(d.len())])).unwrap();
        let cut: Vec<_> = documents.iter().flat_map(|document| pieces(&tokenizer, document).unwrap()).collect();
        assert!(cut.len() > 5, "{} pieces", cut.len());
        assert!(cut.iter().filter(|piece| piece.ends_document).count() == 3);
        let dir = tempfile::tempdir().unwrap();
        prepare(&tokenizer, &[("train", &documents)], dir.path(), &mut |_| ()).unwrap();
        let end = tokenizer.document_end_id().unwrap();
        let whole = documents.iter().flat_map(|d| [tokenizer.encode(d).unwrap(), vec![end]].concat());
        assert_eq!(TokenDataset::open(dir.path(), "train").unwrap().tokens(), whole.collect::<Vec<_>>());
    }

    #[test]
    fn a_flipped_bit_in_any_file_is_refused_by_name() {
        let (dir, _) = dataset(&["one two three", "four five"]);
        for name in ["train-00000.bin", "train-documents.bin"] {
            let file = dir.path().join(name);
            let intact = std::fs::read(&file).unwrap();
            for at in 0..intact.len() {
                let mut bytes = intact.clone();
                bytes[at] ^= 1; // stays within the vocabulary
                std::fs::write(&file, bytes).unwrap();
                let message = TokenDataset::open(dir.path(), "train").unwrap_err().to_string();
                assert!(message.contains(&format!("{name}: differs from the SHA-256")), "{message}");
            }
            std::fs::write(&file, intact).unwrap();
        }
        TokenDataset::open(dir.path(), "train").unwrap();
    }

    #[test]
    fn damaged_shards_are_errors() {
        let (dir, _) = dataset(&["one two three"]);
        let message = |split: &str| TokenDataset::open(dir.path(), split).unwrap_err().to_string();
        assert!(message("test").contains("has no split \"test\"; its splits are train"));
        let (file, path) = (dir.path().join("train-00000.bin"), dir.path().join("manifest.json"));
        let (bytes, manifest) = (std::fs::read(&file).unwrap(), std::fs::read_to_string(&path).unwrap());
        // A file that fits its SHA-256, but not the rest of the manifest.
        let replace = |content: &[u8]| {
            let hash = |bytes: &[u8]| writer::hexadecimal(&Sha256::digest(bytes));
            std::fs::write(&file, content).unwrap();
            std::fs::write(&path, manifest.replace(&hash(&bytes), &hash(content))).unwrap();
        };
        replace(&bytes[..bytes.len() - 2]);
        assert!(message("train").contains("the manifest says"));
        let mut wrong = bytes.clone();
        wrong[1] = 0xff;
        replace(&wrong);
        assert!(
            message("train").contains("train-00000.bin: token id") && message("train").contains("outside the vocab")
        );
        replace(&bytes);
        TokenDataset::open(dir.path(), "train").unwrap();
        std::fs::write(&path, manifest.replace("\"documents\": 1", "\"documents\": 2")).unwrap();
        assert!(message("train").contains("train-documents.bin: is not an index of 2 documents"));
        std::fs::write(&path, manifest.replace("train-00000.bin", "../train-00000.bin")).unwrap();
        assert!(message("train").contains("is not the name of a file in the folder"));
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&path, &manifest).unwrap();
        assert!(message("train").contains("train-00000.bin: no such file"), "{}", message("train"));
        assert!(
            TokenDataset::open(dir.path().join("none"), "train").unwrap_err().to_string().contains("llm-train prepare")
        );
    }

    #[test]
    fn the_first_version_of_the_format_is_refused_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = r#"{"version": 1, "tokenizer": "0", "vocab_size": 9, "dtype": "u16", "splits": {}}"#;
        std::fs::write(dir.path().join("manifest.json"), manifest).unwrap();
        let message = TokenDataset::open(dir.path(), "train").unwrap_err().to_string();
        let expected = "manifest.json: \"version\" is 1; it must be 2; run `llm-train prepare` again";
        assert!(message.ends_with(expected) && message.lines().count() == 1, "{message}");
    }
}
