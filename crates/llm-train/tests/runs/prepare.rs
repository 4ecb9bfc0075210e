//! `prepare`: the split by document, copies, threads, token files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use llm_data::{TokenDataset, write_jsonl};
use llm_tokenizer::Tokenizer;
use llm_train::recipes::{PrepareInputs, prepare};
use serde_json::json;

use super::common::contents;
use super::program::output;
use super::{FIXTURE, quiet};

fn text(i: usize) -> String {
    let words = ["one", "two", "three", "four", "five", "six", "seven", "eight"];
    (0..12).map(|k| words[(i >> k) % 8]).collect::<Vec<_>>().join(" ") + &format!(" and {i}.")
}

fn write(path: &Path, texts: impl IntoIterator<Item = String>) -> PathBuf {
    write_jsonl(path, &texts.into_iter().map(|text| json!({ "text": text })).collect::<Vec<_>>()).unwrap();
    path.to_owned()
}

/// The texts of the documents of both splits, and their numbers.
fn prepared(out: &Path, train: Vec<PathBuf>, more: PrepareInputs) -> [Vec<String>; 2] {
    let tokenizer = FIXTURE.path("model.tokenizer");
    let share = if more.validation_share > 0. { more.validation_share } else { 0.05 };
    prepare(&PrepareInputs { tokenizer, train, validation_share: share, ..more }, out, quiet()).unwrap();
    ["train", "held_out"].map(|split| documents(out, split))
}

fn documents(shards: &Path, split: &str) -> Vec<String> {
    let tokenizer = Tokenizer::load(FIXTURE.path("model.tokenizer")).unwrap();
    let data = TokenDataset::open(shards, split).unwrap();
    let text = |number| tokenizer.decode(&data.ids(data.document(number).unwrap())).unwrap();
    (0..data.documents()).map(text).collect()
}

#[test]
fn copies_of_a_document_are_left_out_and_never_in_both_splits() {
    let dir = tempfile::tempdir().unwrap();
    // The last five repeat the first five, but for case and white space.
    let copies = (0..5).map(|i| text(i).to_uppercase().replace(' ', "  "));
    let data = write(&dir.path().join("data.jsonl"), (0..95).map(text).chain(copies));
    for (share, name) in [(0.05, "few"), (0.2, "many")] {
        let out = dir.path().join(name);
        let more = PrepareInputs { validation_share: share, ..PrepareInputs::default() };
        let [train, validation] = prepared(&out, vec![data.clone()], more);
        assert!(!validation.is_empty(), "{name}");
        let both: BTreeSet<&String> = train.iter().chain(&validation).collect();
        // Of few documents the end is taken, which is a part of one of them.
        let documents = if name == "few" { 96 } else { 95 };
        assert_eq!((both.len(), train.len() + validation.len()), (documents, documents), "{name}");
        assert!(both.iter().all(|text| !text.contains("  ")));
    }
    // Two files with the same text: one document, of which the end is the validation split.
    let long = (0..40).map(|i| text(i) + "\n").collect::<String>();
    let twins = ["a.txt", "b.txt"].map(|name| dir.path().join("twins").join(name));
    fs::create_dir(dir.path().join("twins")).unwrap();
    twins.iter().for_each(|path| fs::write(path, &long).unwrap());
    let [train, validation] = prepared(&dir.path().join("one"), twins.to_vec(), PrepareInputs::default());
    assert_eq!((train.len(), validation.len(), train.concat() + &validation.concat()), (1, 1, long));
    let run =
        format!("prepare --tokenizer {} --train data.jsonl --out said", FIXTURE.path("model.tokenizer").display());
    let (code, _, said) = output(dir.path(), &run);
    assert!(code == Some(0) && said.contains("5 of 100 documents repeat an earlier one and are left out"), "{said}");
}

#[test]
fn a_document_stays_in_its_split_when_the_data_grows_and_is_in_other_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let share = || PrepareInputs { validation_share: 0.1, ..PrepareInputs::default() };
    let first = write(&path("first.jsonl"), (0..300).map(text));
    let [train, validation] = prepared(&path("small"), vec![first], share());
    assert!((15..50).contains(&validation.len()), "{} of 300", validation.len());
    let more = [write(&path("a.jsonl"), (300..500).map(text)), write(&path("b.jsonl"), (0..300).rev().map(text))];
    let [larger_train, larger_validation] = prepared(&path("large"), more.to_vec(), share());
    let [larger_train, larger_validation] = [larger_train, larger_validation].map(BTreeSet::from_iter);
    assert!(train.iter().all(|text| larger_train.contains(text)));
    assert!(validation.iter().all(|text| larger_validation.contains(text)));
    assert_eq!(larger_train.len() + larger_validation.len(), 500);
}

#[test]
fn the_number_of_threads_does_not_change_the_files_and_nothing_is_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("data.jsonl"), (0..3000).map(|i| text(i).repeat(i % 40 + 1)));
    let tokenizer = FIXTURE.path("model.tokenizer").display().to_string();
    for threads in [1, 2, 3] {
        let line =
            format!("--threads {threads} prepare --tokenizer {tokenizer} --train data.jsonl --out shards-{threads}");
        let (code, _, said) = output(dir.path(), &line);
        assert!(code == Some(0) && said.contains(" MB/s with "), "{said}");
        assert_eq!(contents(&dir.path().join(format!("shards-{threads}"))), contents(&dir.path().join("shards-1")));
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
}

#[test]
fn an_exact_share_of_one_text_is_cut_at_its_character() {
    let dir = tempfile::tempdir().unwrap();
    let whole: String = (0..90).map(|i| text(i) + "\n").collect();
    let file = dir.path().join("text.txt");
    fs::write(&file, &whole).unwrap();
    let more = || PrepareInputs { validation_share: 0.1, exact_share: true, ..PrepareInputs::default() };
    let [train, validation] = prepared(&dir.path().join("shards"), vec![file.clone()], more());
    let cut = whole.len() * 9 / 10;
    assert_eq!((train, validation), (vec![whole[..cut].to_owned()], vec![whole[cut..].to_owned()]));
    let several = PrepareInputs {
        tokenizer: FIXTURE.path("model.tokenizer"),
        train: vec![file, write(&dir.path().join("a.jsonl"), (0..4).map(text))],
        ..more()
    };
    let message = prepare(&several, &dir.path().join("several"), quiet()).unwrap_err().to_string();
    assert!(message.contains("--exact-share cuts one document") && !dir.path().join("several").exists(), "{message}");
}

/// Exported files give the same split again, as it depends on the text only.
#[test]
fn token_files_give_the_shards_of_their_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let data = write(&path("data.jsonl"), (0..300).map(text));
    let expected = prepared(&path("shards"), vec![data], PrepareInputs::default()).map(BTreeSet::from_iter);
    for (format, ending) in [("llm-c", "bin"), ("megatron", "idx")] {
        let (code, said, _) =
            output(dir.path(), &format!("export-shards --data shards --format {format} --out {format}"));
        assert!(code == Some(0) && said.contains("done, held_out and train"), "{said}");
        let files = ["train", "held_out"].map(|split| path(format).join(split).with_extension(ending));
        let again = path(&format!("{format}-shards"));
        let found = prepared(&again, files.to_vec(), PrepareInputs::default()).map(BTreeSet::from_iter);
        assert_eq!(found, expected, "{format}");
    }
    let [bytes, again] =
        ["shards", "llm-c-shards"].map(|dir| TokenDataset::open(path(dir), "held_out").unwrap().bytes());
    assert_eq!(bytes, again);
}
