//! The way of a text into a tokenizer and into token shards.

use std::path::{Path, PathBuf};

use llm_data::{Duplicates, ItemKeys, SplitKey, read_documents};
use llm_tokenizer::{Tokenizer, TrainConfig, train_bpe};
use rayon::prelude::*;

use crate::run::{Event, RunOptions, refuse_existing};
use crate::{Error, Result};

/// Trains a byte-level BPE tokenizer on the documents of `input` and saves it into `out`.
pub fn train_tokenizer(config: &TrainConfig, input: &[PathBuf], out: &Path, resume: bool) -> Result<Tokenizer> {
    // The file that is written last.
    if resume && out.join("tokenizer_config.json").exists() {
        return Ok(Tokenizer::from_dir(out)?);
    }
    if !resume {
        refuse_existing_folder(out)?;
    }
    let documents = read_all(input)?;
    // Paragraphs instead of whole books: the trainer counts them in parallel.
    let tokenizer = train_bpe(config, documents.iter().flat_map(|document| document.split_inclusive('\n')))?;
    tokenizer.save(out)?;
    let bytes: usize = documents.iter().map(String::len).sum();
    tracing::info!("{}: {} tokens, learnt from {bytes} bytes", out.display(), tokenizer.vocab_size());
    Ok(tokenizer)
}

/// As for a run, but what is made here cannot be resumed.
fn refuse_existing_folder(out: &Path) -> Result<()> {
    refuse_existing(out).map_err(|_| Error::Input(format!("{}: exists already; choose another --out", out.display())))
}

fn read_all(paths: &[PathBuf]) -> Result<Vec<String>> {
    let mut documents = Vec::new();
    for path in paths {
        documents.extend(read_documents(path)?);
    }
    Ok(documents)
}

/// What [`prepare`] reads.
#[derive(Debug, Clone)]
pub struct PrepareInputs<'a> {
    /// The folder of the tokenizer.
    pub tokenizer: &'a Path,
    /// Files or folders of text to learn from.
    pub train: &'a [PathBuf],
    /// Files or folders of text to test on; none: the end of the training text.
    pub held_out: &'a [PathBuf],
    /// The share of the training text that is held out if there is no text of its own for that.
    pub held_out_share: f64,
}

/// Turns text into token shards in `out`: the splits `train` and `held_out`.
pub fn prepare(inputs: &PrepareInputs, out: &Path, options: RunOptions) -> Result<()> {
    if options.resume && out.join("manifest.json").exists() {
        return Ok(());
    }
    if !options.resume {
        refuse_existing_folder(out)?;
    }
    let tokenizer = Tokenizer::from_dir(inputs.tokenizer)?;
    let (mut train, mut held_out) = (read_all(inputs.train)?, read_all(inputs.held_out)?);
    let duplicates = Duplicates::within(train.iter().map(|document| text_keys(document)));
    if duplicates.exact > 0 {
        tracing::warn!("{} of {} training documents repeat an earlier one", duplicates.exact, train.len());
    }
    if inputs.held_out.is_empty() {
        held_out = take_end(&mut train, inputs.held_out_share)?;
        say_what_is_repeated(&train, &held_out);
    } else if say_what_is_repeated(&train, &held_out) {
        let paths: Vec<String> = inputs.held_out.iter().map(|path| path.display().to_string()).collect();
        return Err(Error::Input(format!(
            "{}: all of its lines are in the training text too, so that nothing is held out; give other text, or leave out \
             --held-out for the end of the training text",
            paths.join(", ")
        )));
    }
    let total = train.iter().chain(&held_out).map(|d| d.len() as u64).sum();
    (options.observer)(Event::Begin { stage: "prepare", total, done: 0, unit: "bytes" });
    let splits = [("train", train.as_slice()), ("held_out", held_out.as_slice())];
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

/// A text without a prompt: a document or a line.
fn text_keys(text: &str) -> ItemKeys {
    SplitKey::of([text]).into()
}

/// Says how many of the held-out lines are training lines too; returns whether all are.
fn say_what_is_repeated(train: &[String], held_out: &[String]) -> bool {
    let lines = |documents: &[String]| -> Vec<ItemKeys> {
        let lines = documents.par_iter().flat_map_iter(|document| document.lines());
        lines.filter(|line| !line.trim().is_empty()).map(text_keys).collect()
    };
    let tested = lines(held_out);
    let (all, repeated) = (tested.len(), Duplicates::across(lines(train), tested).exact);
    // Headings and the like occur in many texts.
    if repeated * 10 > all {
        tracing::warn!("{repeated} of {all} held-out lines are in the training text too");
    }
    repeated == all
}

/// Takes whole documents from the end, and the end of the last one, until about `share` of the bytes are taken.
fn take_end(documents: &mut Vec<String>, share: f64) -> Result<Vec<String>> {
    if !(share > 0. && share < 1.) {
        return Err(Error::Input(format!("--held-out-share is {share}; it must lie between 0 and 1")));
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
        let message = format!("{all} bytes of text are too few to hold out {share}; give --held-out or more text");
        return Err(Error::Input(message));
    }
    Ok(taken)
}

/// Where the last `wanted` bytes of a text begin, moved by at most half of them to the next start of a line, or else to
/// the last one before; where lines are longer, to that of a sentence, or else of a word.
fn boundary(text: &str, wanted: usize) -> usize {
    let on_char = |mut at: usize| {
        while !text.is_char_boundary(at) {
            at += 1;
        }
        at
    };
    let cut = on_char(text.len().saturating_sub(wanted));
    let last = on_char((cut + wanted / 2).min(text.len()));
    let first = on_char(cut.saturating_sub(wanted / 2)).min(cut);
    let (before, after) = (&text[first..cut], &text[cut..last]);
    let starts = |mark: &str| {
        let behind = after.find(mark).map(|at| cut + at + mark.len()).filter(|&at| at < text.len());
        behind.or_else(|| before.rfind(mark).map(|at| first + at + mark.len()))
    };
    ["\n", ". ", " "].into_iter().find_map(starts).unwrap_or(cut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::NEVER;

    #[test]
    fn the_end_of_the_text_is_held_out_and_nothing_is_lost() {
        let texts = ["one\ntwo\n", "three\nfour\nfive\nsix\nseven\neight\n"].map(str::to_owned);
        let mut train = texts.to_vec();
        let held_out = take_end(&mut train, 0.2).unwrap();
        assert_eq!(held_out, ["eight\n"]);
        assert_eq!(train.concat() + &held_out.concat(), texts.concat());
        let mut train = texts.to_vec();
        let held_out = take_end(&mut train, 0.9).unwrap();
        assert_eq!(train.concat() + &held_out.concat(), texts.concat());
        assert!(take_end(&mut vec![String::new()], 0.1).is_err());
        assert!(take_end(&mut vec!["\n\n\n\n".to_owned()], 0.5).is_err());
        assert!(take_end(&mut texts.to_vec(), 1.5).is_err());
    }

    #[test]
    fn a_long_line_is_cut_at_a_sentence_a_word_or_a_character() {
        for (unit, last) in [("Some words are here. ", ". "), ("word ", " "), ("é", "é")] {
            for end in ["", "\n"] {
                let text = unit.repeat(2000) + end;
                let mut train = vec![text.clone()];
                let held_out = take_end(&mut train, 0.05).unwrap();
                assert_eq!(train.concat() + &held_out.concat(), text);
                assert!(train[0].ends_with(last), "{unit:?}: {:?}", &held_out[0][..20]);
                let share = held_out[0].len() as f64 / text.len() as f64;
                assert!((0.04..0.06).contains(&share), "{unit:?}: {share}");
            }
        }
        // A line start is better than that of a sentence, also where it lies before.
        let text = format!("{}\n{}\nend\n", "a b. ".repeat(100), "c d. ".repeat(100));
        let mut train = vec![text.clone()];
        assert_eq!(take_end(&mut train, 0.45).unwrap(), [format!("{}\nend\n", "c d. ".repeat(100))]);
    }

    /// Prepares `train`, and `held_out` if it is not empty.
    fn prepared(dir: &Path, train: &str, held_out: &str) -> Result<()> {
        let files = [dir.join("train.txt"), dir.join("held_out.txt")];
        std::fs::write(&files[0], train).unwrap();
        std::fs::write(&files[1], held_out).unwrap();
        let (tokenizer, out) = (dir.join("tokenizer"), dir.join("shards"));
        if !tokenizer.exists() {
            let config = TrainConfig { vocab_size: 300, min_frequency: 1 };
            train_tokenizer(&config, &files[..1], &tokenizer, false)?;
        }
        let held_out = if held_out.is_empty() { &[] } else { &files[1..] };
        let inputs = PrepareInputs { tokenizer: &tokenizer, train: &files[..1], held_out, held_out_share: 0.05 };
        let done = prepare(&inputs, &out, RunOptions { resume: false, observer: &mut |_| (), stop: &NEVER });
        if done.is_ok() {
            std::fs::remove_dir_all(&out).unwrap();
        }
        done
    }

    #[test]
    fn text_that_is_training_text_is_not_held_out() {
        let dir = tempfile::tempdir().unwrap();
        let train = "The first line.\nThe second line.\nThe third line.\n";
        for held_out in [train, "the  THIRD line.\r\n\r\nThe first line."] {
            let message = prepared(dir.path(), train, held_out).unwrap_err().to_string();
            assert!(message.contains("held_out.txt: all of its lines are in the training text too"), "{message}");
            assert!(!dir.path().join("shards").exists());
        }
        prepared(dir.path(), train, "The third line.\nA fourth line.\n").unwrap();
        prepared(dir.path(), &"all lines are alike\n".repeat(50), "").unwrap();
    }

    #[test]
    fn a_folder_that_is_there_is_refused_without_naming_an_option_that_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (out, text) = (dir.path().join("shards"), "some text ".repeat(50));
        std::fs::create_dir(&out).unwrap();
        std::fs::write(out.join("precious"), "x").unwrap();
        let message = prepared(dir.path(), &text, "").unwrap_err().to_string();
        assert!(message.ends_with("shards: exists already; choose another --out"), "{message}");
        let config = TrainConfig { vocab_size: 300, min_frequency: 1 };
        let message = train_tokenizer(&config, &[dir.path().join("train.txt")], &out, false).unwrap_err().to_string();
        assert!(message.ends_with("shards: exists already; choose another --out"), "{message}");
    }
}
