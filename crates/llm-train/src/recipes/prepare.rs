//! Tokenizer training, and tokenization of text into shards.

use std::path::{Path, PathBuf};

use llm_data::{Contamination, Duplicates, ItemKeys, NGrams, SplitKey, read_documents};
use llm_tokenizer::{Tokenizer, TrainConfig, train_bpe};
use rayon::prelude::*;

use crate::limits::keys::check_tokenizer;
use crate::run::{Event, RunOptions, already_exists, refuse_existing};
use crate::{Error, Result};

/// Trains a byte-level BPE tokenizer on the documents of `input` and saves it into `out`.
pub fn train_tokenizer(
    config: &TrainConfig,
    input: &[PathBuf],
    out: impl AsRef<Path>,
    resume: bool,
) -> Result<Tokenizer> {
    let out = out.as_ref();
    // This file is written last.
    if resume && out.join("tokenizer_config.json").exists() {
        return Ok(Tokenizer::load(out)?);
    }
    check_tokenizer(config, "")?;
    if !resume {
        refuse_existing_folder(out)?;
    }
    let documents = read_all(input)?;
    // Lines instead of whole documents: the trainer counts them in parallel.
    let tokenizer = train_bpe(config, documents.iter().flat_map(|document| document.split_inclusive('\n')))?;
    tokenizer.save(out)?;
    let bytes: usize = documents.iter().map(String::len).sum();
    tracing::info!("{}: {} tokens, trained on {bytes} bytes", out.display(), tokenizer.vocab_size());
    Ok(tokenizer)
}

/// [`refuse_existing`] without the advice to resume, as these folders are not runs.
fn refuse_existing_folder(out: &Path) -> Result<()> {
    refuse_existing(out).map_err(|_| already_exists(out, false))
}

fn read_all(paths: &[PathBuf]) -> Result<Vec<String>> {
    let mut documents = Vec::new();
    for path in paths {
        documents.extend(read_documents(path)?);
    }
    Ok(documents)
}

/// The inputs of [`prepare`].
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct PrepareInputs {
    /// Folder of the tokenizer.
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR"))]
    pub tokenizer: PathBuf,
    /// Training text: text or JSONL files (also .gz), or folders of them.
    #[cfg_attr(feature = "cli", arg(long, required = true, num_args = 1.., value_name = "PATH"))]
    pub train: Vec<PathBuf>,
    /// Validation text, in the same formats [default: the end of the training text].
    #[cfg_attr(feature = "cli", arg(long, alias = "held-out", num_args = 1.., value_name = "PATH", display_order = 3))]
    pub validation: Vec<PathBuf>,
    /// Without --validation: share of the training text, taken from its end, to validate on; above 0 and below 1.
    #[cfg_attr(
        feature = "cli",
        arg(long, alias = "held-out-share", default_value_t = 0.05, value_name = "SHARE", display_order = 4)
    )]
    pub validation_share: f64,
}

/// Tokenizes text into shards in `out`: the splits `train` and `held_out` (the validation split).
pub fn prepare(inputs: &PrepareInputs, out: impl AsRef<Path>, options: RunOptions) -> Result<()> {
    let out = out.as_ref();
    if options.resume && out.join("manifest.json").exists() {
        return Ok(());
    }
    if !options.resume {
        refuse_existing_folder(out)?;
    }
    let tokenizer = Tokenizer::load(&inputs.tokenizer)?;
    let (mut train, mut validation) = (read_all(&inputs.train)?, read_all(&inputs.validation)?);
    let duplicates = Duplicates::within(train.iter().map(|document| text_keys(document)));
    if duplicates.exact > 0 {
        tracing::warn!("{} of {} training documents repeat an earlier one", duplicates.exact, train.len());
    }
    if inputs.validation.is_empty() {
        validation = take_end(&mut train, inputs.validation_share)?;
        warn_about_repeats(&train, &validation);
    } else if warn_about_repeats(&train, &validation) {
        let paths: Vec<String> = inputs.validation.iter().map(|path| path.display().to_string()).collect();
        return Err(Error::BadRequest(format!(
            "{}: all lines are also in the training text; use other validation text, or leave out --validation to use the \
             end of the training text",
            paths.join(", ")
        )));
    }
    let total = train.iter().chain(&validation).map(|d| d.len() as u64).sum();
    (options.observer)(Event::Begin { stage: "prepare", total, done: 0, unit: "bytes" });
    let splits = [("train", train.as_slice()), ("held_out", validation.as_slice())];
    let manifest = llm_data::prepare(&tokenizer, &splits, out, &mut |done| {
        (options.observer)(Event::Progress { done, message: "" });
    })?;
    (options.observer)(Event::End);
    for (name, split) in &manifest.splits {
        let (tokens, bytes) = (split.tokens, split.bytes);
        let rate = bytes as f64 / tokens.max(1) as f64;
        tracing::info!(
            "{name}: {} documents, {bytes} bytes, {tokens} tokens, {rate:.2} bytes per token",
            split.documents
        );
    }
    Ok(())
}

/// The key of a text without a prompt: a document or a line.
fn text_keys(text: &str) -> ItemKeys {
    SplitKey::of([text]).into()
}

/// Logs how many validation lines are also training lines; returns whether all are.
fn warn_about_repeats(train: &[String], validation: &[String]) -> bool {
    let lines = |documents: &[String]| -> Vec<ItemKeys> {
        let lines = documents.par_iter().flat_map_iter(|document| document.lines());
        lines.filter(|line| !line.trim().is_empty()).map(text_keys).collect()
    };
    let tested = lines(validation);
    let (all, repeated) = (tested.len(), Duplicates::across(lines(train), tested).exact);
    // Tolerate some repeats: headings occur in many texts.
    if repeated * 10 > all {
        tracing::warn!("{repeated} of {all} validation lines are also in the training text");
    }
    let (found, words) = repeated_words(train, validation);
    if found * 10 > words && repeated * 10 <= all {
        let n = NGrams::LENGTH;
        tracing::warn!("{found} of {words} validation words are in sequences of {n} words of the training text");
    }
    repeated == all
}

/// The number of validation words in long n-grams of the training text, and of all validation words: finds lines that are
/// training lines joined or cut in another way.
fn repeated_words(train: &[String], validation: &[String]) -> (usize, usize) {
    let found = Contamination::of(train, validation);
    (found.iter().map(|c| c.repeated).sum(), found.iter().map(|c| c.words).sum())
}

/// Removes about `share` of the bytes from the end of the documents and returns them: whole documents, and the end of one.
fn take_end(documents: &mut Vec<String>, share: f64) -> Result<Vec<String>> {
    if !(share > 0. && share < 1.) {
        return Err(Error::BadRequest(format!("--validation-share is {share}; it must be above 0 and below 1")));
    }
    let all: usize = documents.iter().map(String::len).sum();
    let mut wanted = (all as f64 * share).ceil() as usize;
    let mut taken = Vec::new();
    while let Some(document) = documents.pop() {
        if document.len() <= wanted && !documents.is_empty() {
            wanted -= document.len();
            taken.push(document);
            continue;
        }
        let (head, tail) = document.split_at(boundary(&document, wanted));
        if !head.is_empty() {
            documents.push(head.to_owned());
        }
        if !tail.is_empty() {
            taken.push(tail.to_owned());
        }
        break;
    }
    taken.reverse();
    let blank = |documents: &[String]| documents.iter().all(|document| document.trim().is_empty());
    if blank(documents) || blank(&taken) {
        let message = format!(
            "{all} bytes of text are too few for a validation share of {share}; give --validation or more text"
        );
        return Err(Error::BadRequest(message));
    }
    Ok(taken)
}

/// The index where about the last `wanted` bytes of a text begin: moved by at most half of `wanted` to the next, else to the
/// previous, start of a line, else of a sentence, else of a word.
fn boundary(text: &str, wanted: usize) -> usize {
    let char_boundary = |mut at: usize| {
        while !text.is_char_boundary(at) {
            at += 1;
        }
        at
    };
    let cut = char_boundary(text.len().saturating_sub(wanted));
    let last = char_boundary((cut + wanted / 2).min(text.len()));
    let first = char_boundary(cut.saturating_sub(wanted / 2)).min(cut);
    let (before, after) = (&text[first..cut], &text[cut..last]);
    let starts = |mark: &str| {
        let next = after.find(mark).map(|at| cut + at + mark.len()).filter(|&at| at < text.len());
        next.or_else(|| before.rfind(mark).map(|at| first + at + mark.len()))
    };
    ["\n", ". ", " "].into_iter().find_map(starts).unwrap_or(cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_validation_text_is_the_end_of_the_text() {
        let texts = ["one\ntwo\n", "three\nfour\nfive\nsix\nseven\neight\n"].map(str::to_owned);
        let mut train = texts.to_vec();
        let validation = take_end(&mut train, 0.2).unwrap();
        assert_eq!(validation, ["eight\n"]);
        assert_eq!(train.concat() + &validation.concat(), texts.concat());
        let mut train = texts.to_vec();
        let validation = take_end(&mut train, 0.9).unwrap();
        assert_eq!(train.concat() + &validation.concat(), texts.concat());
        assert!(take_end(&mut vec![String::new()], 0.1).is_err());
        assert!(take_end(&mut vec!["\n\n\n\n".to_owned()], 0.5).is_err());
        assert!(take_end(&mut texts.to_vec(), 1.5).is_err());
    }

    #[test]
    fn a_long_line_is_split_at_a_sentence_a_word_or_a_character() {
        for (unit, last) in [("Some words are here. ", ". "), ("word ", " "), ("é", "é")] {
            for end in ["", "\n"] {
                let text = unit.repeat(2000) + end;
                let mut train = vec![text.clone()];
                let validation = take_end(&mut train, 0.05).unwrap();
                assert_eq!(train.concat() + &validation.concat(), text);
                assert!(train[0].ends_with(last), "{unit:?}: {:?}", &validation[0][..20]);
                let share = validation[0].len() as f64 / text.len() as f64;
                assert!((0.04..0.06).contains(&share), "{unit:?}: {share}");
            }
        }
        // The start of a line is preferred to the start of a sentence, even a previous one.
        let text = format!("{}\n{}\nend\n", "a b. ".repeat(100), "c d. ".repeat(100));
        let mut train = vec![text.clone()];
        assert_eq!(take_end(&mut train, 0.45).unwrap(), [format!("{}\nend\n", "c d. ".repeat(100))]);
    }

    /// Prepares `train`, and `validation` if it is not empty.
    fn try_prepare(dir: &Path, train: &str, validation: &str) -> Result<()> {
        let files = [dir.join("train.txt"), dir.join("validation.txt")];
        std::fs::write(&files[0], train).unwrap();
        std::fs::write(&files[1], validation).unwrap();
        let (tokenizer, out) = (dir.join("tokenizer"), dir.join("shards"));
        if !tokenizer.exists() {
            let config = TrainConfig { vocab_size: 300, min_frequency: 1 };
            train_tokenizer(&config, &files[..1], &tokenizer, false)?;
        }
        let validation = if validation.is_empty() { Vec::new() } else { files[1..].to_vec() };
        let inputs = PrepareInputs { tokenizer, train: files[..1].to_vec(), validation, validation_share: 0.05 };
        let done = prepare(&inputs, &out, RunOptions::default());
        if done.is_ok() {
            std::fs::remove_dir_all(&out).unwrap();
        }
        done
    }

    #[test]
    fn validation_text_that_is_training_text_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let train = "The first line.\nThe second line.\nThe third line.\n";
        for validation in [train, "the  THIRD line.\r\n\r\nThe first line."] {
            let message = try_prepare(dir.path(), train, validation).unwrap_err().to_string();
            assert!(message.contains("validation.txt: all lines are also in the training text"), "{message}");
            assert!(!dir.path().join("shards").exists());
        }
        try_prepare(dir.path(), train, "The third line.\nA fourth line.\n").unwrap();
        try_prepare(dir.path(), &"all lines are alike\n".repeat(50), "").unwrap();
    }

    #[test]
    fn validation_text_that_is_joined_training_lines_is_counted() {
        let lines: Vec<String> = (0..20).map(|i| format!("Line {i} has a few words of its own, {}.", i * i)).collect();
        let train = [lines.join("\n")];
        let words = 20 * 10;
        assert_eq!(repeated_words(&train, &[lines.join(" ")]), (words, words));
        let documents = lines.iter().map(|line| format!("{line}\n")).collect::<Vec<_>>();
        assert_eq!(repeated_words(&documents, &[lines.join(" ")]), (words, words));
        assert_eq!(repeated_words(&train, &["Quite other words that are nowhere else.".to_owned()]), (0, 7));
    }

    #[test]
    fn numbers_of_a_tokenizer_outside_their_range_are_refused_before_a_folder_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let (text, out) = ([dir.path().join("text.txt")], dir.path().join("tokenizer"));
        std::fs::write(&text[0], "some text ".repeat(50)).unwrap();
        for (vocab_size, min_frequency, named) in [
            (99_999_999_999, 2, "vocab_size is 99999999999; it must be a whole number from"),
            (0, 2, "vocab_size is 0"),
            (300, 0, "min_frequency is 0; it must be a whole number from 1"),
        ] {
            let config = TrainConfig { vocab_size, min_frequency };
            let message = train_tokenizer(&config, &text, &out, false).unwrap_err().to_string();
            assert!(message.contains(named), "{message}");
            assert!(!out.exists());
        }
    }

    #[test]
    fn the_error_for_an_existing_folder_does_not_mention_resume() {
        let dir = tempfile::tempdir().unwrap();
        let (out, text) = (dir.path().join("shards"), "some text ".repeat(50));
        std::fs::create_dir(&out).unwrap();
        std::fs::write(out.join("precious"), "x").unwrap();
        let message = try_prepare(dir.path(), &text, "").unwrap_err().to_string();
        assert!(message.ends_with("shards: already exists; choose another --out"), "{message}");
        let config = TrainConfig { vocab_size: 300, min_frequency: 1 };
        let message = train_tokenizer(&config, &[dir.path().join("train.txt")], &out, false).unwrap_err().to_string();
        assert!(message.ends_with("shards: already exists; choose another --out"), "{message}");
    }
}
