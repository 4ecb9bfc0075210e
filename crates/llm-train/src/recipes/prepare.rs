//! Tokenization of text into shards.

mod end;
mod repeats;
mod split;
mod stream;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use llm_data::{DocumentOptions, Markup, ShardWriter, document_files, is_token_file};
use llm_tokenizer::Tokenizer;

use self::split::{Splitter, TRAIN, VALIDATION, Validation};
use self::stream::{Item, Reader};
use crate::run::{Event, RunOptions, already_exists, refuse_existing};
use crate::{Error, Result};

/// [`refuse_existing`] without the advice to resume, as these folders are not runs.
fn refuse_existing_folder(out: &Path) -> Result<()> {
    refuse_existing(out).map_err(|_| already_exists(out, false))
}

/// The inputs of [`prepare`].
#[derive(Debug, Clone, Default, PartialEq)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct PrepareInputs {
    /// Folder of the tokenizer.
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR"))]
    pub tokenizer: PathBuf,
    /// Training text: text, Markdown, HTML, JSONL, CSV or Parquet files (also .gz or .zst), or folders of them; or token files of
    /// llm.c (.bin) or Megatron-LM (.idx).
    #[cfg_attr(feature = "cli", arg(long, required = true, num_args = 1.., value_name = "PATH"))]
    pub train: Vec<PathBuf>,
    /// Validation text, in the same formats [default: a part of the training text].
    #[cfg_attr(feature = "cli", arg(long, alias = "held-out", num_args = 1.., value_name = "PATH", display_order = 3))]
    pub validation: Vec<PathBuf>,
    /// Without --validation: share of the documents to validate on, chosen by the hash of their text; of one document, or a few, about
    /// this share of the text at its end. Above 0 and below 1.
    #[cfg_attr(
        feature = "cli",
        arg(long, alias = "held-out-share", default_value_t = 0.05, value_name = "SHARE", display_order = 4)
    )]
    pub validation_share: f64,
    /// Cut one document at exactly its share of characters, not at a line, so that results compare with nanoGPT's.
    #[cfg_attr(feature = "cli", arg(long, display_order = 5))]
    pub exact_share: bool,
    /// Literal between the documents of text files, such as "<|endoftext|>" [default: a file is one document].
    #[cfg_attr(feature = "cli", arg(long, value_name = "TEXT", display_order = 6))]
    pub separator: Option<String>,
    /// Remove the markup of Markdown and HTML files.
    #[cfg_attr(feature = "cli", arg(long, display_order = 7))]
    pub strip_markup: bool,
    /// Refuse files with rows or documents that cannot be read, instead of leaving these out.
    #[cfg_attr(feature = "cli", arg(long, display_order = 8))]
    pub strict: bool,
}

/// Tokenizes text into shards in `out`: the splits `train` and `held_out` (the validation split).
///
/// Documents are read, divided and tokenized as a stream. Without validation text, documents whose text occurred before (but for case
/// and white space) are left out, so that no document is in both splits.
pub fn prepare(inputs: &PrepareInputs, out: impl AsRef<Path>, options: RunOptions) -> Result<()> {
    let out = out.as_ref();
    if options.resume && out.join("manifest.json").exists() {
        return Ok(());
    }
    if !options.resume {
        refuse_existing_folder(out)?;
    }
    let validation = inputs.split()?;
    let tokenizer = Tokenizer::load(&inputs.tokenizer)?;
    let read_options = inputs.read_options();
    let mut files = Files::of(&[inputs.train.as_slice(), &inputs.validation].concat())?;
    let mut splitter =
        Splitter::new(&tokenizer, ShardWriter::create(&tokenizer, out, &[TRAIN, VALIDATION])?, validation);
    let observer = options.observer;
    observer(Event::Begin { stage: "prepare", total: files.total, done: 0, unit: "bytes" });
    let started = Instant::now();
    let reader = Reader { options: &read_options, tokenizer: &tokenizer };
    reader.for_each_batch(&inputs.train, &mut |batch| {
        let done = files.done(&batch);
        splitter.train(batch)?;
        observer(Event::Progress { done, message: "" });
        Ok(())
    })?;
    reader.for_each_batch(&inputs.validation, &mut |batch| {
        let done = files.done(&batch);
        splitter.validation(batch)?;
        observer(Event::Progress { done, message: "" });
        Ok(())
    })?;
    let given: Vec<String> = inputs.validation.iter().map(|path| path.display().to_string()).collect();
    let finished = splitter.finish(&given.join(", "), started)?;
    observer(Event::Progress { done: files.total, message: "" });
    observer(Event::End);
    for (name, split) in &finished.splits {
        let (tokens, bytes) = (split.tokens, split.bytes);
        let rate = bytes as f64 / tokens.max(1) as f64;
        tracing::info!(
            "{name}: {} documents, {bytes} bytes, {tokens} tokens, {rate:.2} bytes per token",
            split.documents
        );
    }
    Ok(())
}

impl PrepareInputs {
    /// What is validated on; an error if the share is out of range.
    fn split(&self) -> Result<Validation> {
        let share = self.validation_share;
        match () {
            () if !self.validation.is_empty() && self.exact_share => {
                let message = "--exact-share cuts the training text; leave it out, or leave out --validation";
                Err(Error::BadRequest(message.to_owned()))
            }
            () if !self.validation.is_empty() => Ok(Validation::Given),
            () if !(share > 0. && share < 1.) => {
                Err(Error::BadRequest(format!("--validation-share is {share}; it must be above 0 and below 1")))
            }
            () if self.exact_share => Ok(Validation::ExactShare(share)),
            () => Ok(Validation::Share(share)),
        }
    }

    fn read_options(&self) -> DocumentOptions {
        let markup = if self.strip_markup { Markup::Strip } else { Markup::Keep };
        DocumentOptions { separator: self.separator.clone(), markup, strict: self.strict }
    }
}

/// The input files with their sizes, to show the progress.
struct Files {
    sizes: HashMap<PathBuf, u64>,
    total: u64,
    /// Bytes of the files before the current one, the current one, and the bytes of text of it.
    before: u64,
    current: Option<(Arc<Path>, u64)>,
}

impl Files {
    fn of(paths: &[PathBuf]) -> Result<Self> {
        let (tokens, texts): (Vec<PathBuf>, Vec<PathBuf>) = paths.iter().cloned().partition(|path| is_token_file(path));
        let size = |path: PathBuf| (std::fs::metadata(&path).map_or(0, |data| data.len()), path);
        let all = document_files(&texts)?.into_iter().chain(tokens).map(size);
        let sizes: HashMap<PathBuf, u64> = all.map(|(size, path)| (path, size)).collect();
        let total = sizes.values().sum();
        Ok(Self { sizes, total, before: 0, current: None })
    }

    /// About how many bytes of files are read with this batch. The text of a compressed file is longer than the file.
    fn done(&mut self, batch: &[Item]) -> u64 {
        for item in batch {
            if self.current.as_ref().is_none_or(|(file, _)| *file != item.file) {
                self.before += self.current.take().map_or(0, |(file, _)| self.size(&file));
                self.current = Some((item.file.clone(), 0));
            }
            if let Some((_, bytes)) = &mut self.current {
                *bytes += (item.text.len() + 2 * item.ids.as_ref().map_or(0, Vec::len)) as u64;
            }
        }
        let current = self.current.as_ref().map_or(0, |(file, bytes)| (*bytes).min(self.size(file)));
        (self.before + current).min(self.total)
    }

    fn size(&self, file: &Path) -> u64 {
        self.sizes.get(file).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use llm_tokenizer::TrainConfig;

    use super::*;
    use crate::recipes::train_tokenizer;

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
        let inputs = PrepareInputs {
            tokenizer,
            train: files[..1].to_vec(),
            validation,
            validation_share: 0.05,
            ..PrepareInputs::default()
        };
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
