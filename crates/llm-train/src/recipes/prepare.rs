//! The way of a text into a tokenizer and into token shards.

use std::path::{Path, PathBuf};

use llm_data::read_documents;
use llm_tokenizer::{Tokenizer, TrainConfig, train_bpe};

use crate::run::{Event, RunOptions, refuse_existing};
use crate::{Error, Result};

/// Trains a byte-level BPE tokenizer on the documents of `input` and saves it into `out`.
pub fn train_tokenizer(config: &TrainConfig, input: &[PathBuf], out: &Path, resume: bool) -> Result<Tokenizer> {
    // The file that is written last.
    if resume && out.join("tokenizer_config.json").exists() {
        return Ok(Tokenizer::from_dir(out)?);
    }
    if !resume {
        refuse_existing(out)?;
    }
    let mut documents = Vec::new();
    for path in input {
        documents.extend(read_documents(path)?);
    }
    // Paragraphs instead of whole books: the trainer counts them in parallel.
    let tokenizer = train_bpe(config, documents.iter().flat_map(|document| document.split_inclusive('\n')))?;
    tokenizer.save(out)?;
    let bytes: usize = documents.iter().map(String::len).sum();
    tracing::info!("{}: {} tokens, learnt from {bytes} bytes", out.display(), tokenizer.vocab_size());
    Ok(tokenizer)
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
        refuse_existing(out)?;
    }
    let tokenizer = Tokenizer::from_dir(inputs.tokenizer)?;
    let read = |paths: &[PathBuf]| -> Result<Vec<String>> {
        let mut documents = Vec::new();
        for path in paths {
            documents.extend(read_documents(path)?);
        }
        Ok(documents)
    };
    let (mut train, mut held_out) = (read(inputs.train)?, read(inputs.held_out)?);
    if held_out.is_empty() {
        held_out = take_end(&mut train, inputs.held_out_share)?;
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

/// Takes whole documents from the end, and the end of the last one, cut at a line, until `share` of the bytes are taken.
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
        let mut cut = document.len() - wanted.min(document.len());
        while !document.is_char_boundary(cut) {
            cut += 1;
        }
        let cut = document[cut..].find('\n').map_or(cut, |at| cut + at + 1);
        let (head, tail) = document.split_at(cut);
        if !head.is_empty() {
            documents.push(head.to_owned());
        }
        if !tail.is_empty() {
            taken.push(tail.to_owned());
        }
        break;
    }
    taken.reverse();
    if documents.is_empty() || taken.is_empty() {
        let message = format!("{all} bytes of text are too few to hold out {share}; give --held-out or more text");
        return Err(Error::Input(message));
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(take_end(&mut texts.to_vec(), 1.5).is_err());
    }
}
