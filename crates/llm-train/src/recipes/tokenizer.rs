//! Tokenizer training.

use std::path::{Path, PathBuf};

use llm_data::{DocumentOptions, document_files, for_each_document};
use llm_tokenizer::{Kind, Split, Tokenizer, TrainConfig, TrainSettings, Trainer};

use crate::limits::keys::check_tokenizer;
use crate::run::{already_exists, refuse_existing};
use crate::{Error, Result};

/// Pieces of at most this length are not cut, in bytes.
const LONG_PIECE: usize = TrainSettings::MAX_TOKEN_LENGTH;
/// The most memory that counting needs, in bytes: the pieces, and the text that is counted at once.
const COUNTING_MEMORY: u64 = 400 << 20;

/// Bytes per second and thread that are counted, about.
const COUNTING_SPEED: f64 = 20e6;
/// Size of files whose counting is announced, in bytes.
const WORTH_SAYING: u64 = 1 << 20;

/// Trains a tokenizer on the documents of `input` and saves it into `out`. Reads the documents one after the other, in bounded
/// memory; says before it starts how much that is.
pub fn train_tokenizer(
    settings: impl Into<TrainSettings>,
    input: &[PathBuf],
    out: impl AsRef<Path>,
    resume: bool,
) -> Result<Tokenizer> {
    let (settings, out) = (settings.into(), out.as_ref());
    // This file is written last.
    if resume && out.join("tokenizer_config.json").exists() {
        return Ok(Tokenizer::load(out)?);
    }
    check(&settings)?;
    if !resume {
        refuse_existing(out).map_err(|_| already_exists(out, false))?;
    }
    let mut trainer = Trainer::new(&settings)?;
    let files = document_files(input)?;
    let bytes: u64 = files.iter().filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum();
    let memory = COUNTING_MEMORY.min(bytes.saturating_mul(8));
    if bytes >= WORTH_SAYING {
        let seconds = bytes as f64 / COUNTING_SPEED / rayon::current_num_threads() as f64;
        let (bytes, memory) = (megabytes(bytes), megabytes(memory));
        tracing::info!("counting {bytes} of files takes about {seconds:.0} s and at most {memory} of memory");
    }
    let read = for_each_document(input, &DocumentOptions::default(), &mut |document| {
        trainer.add(document.text, &document.file);
        Ok(())
    })?;
    let problems = read.to_string();
    if !problems.is_empty() {
        tracing::warn!("{}", problems.trim_end());
    }
    let estimate = trainer.estimate();
    tracing::info!(
        "learning at most {} tokens takes about {:.0} s and {} of memory",
        settings.vocab_size,
        estimate.seconds.ceil(),
        megabytes(estimate.memory as u64)
    );
    let (tokenizer, report) = trainer.finish()?;
    if let Some(longest) = report.longest.filter(|longest| longest.bytes > LONG_PIECE) {
        let done = if settings.kind.is_byte_level() { "cut" } else { "left out" };
        tracing::warn!(
            "{}: a piece without a border has {} bytes; pieces of more than {LONG_PIECE} bytes are {done}",
            longest.source.display(),
            longest.bytes
        );
    }
    if report.left_out > 0 {
        tracing::warn!("{} occurrences of rare pieces were left out to limit the memory", report.left_out);
    }
    tokenizer.save(out)?;
    let (found, asked) = (tokenizer.vocab_size(), settings.vocab_size);
    let short = if found < asked { format!(" (of {asked}: the text has no more)") } else { String::new() };
    let (documents, bytes, pieces) = (report.documents, report.bytes, report.pieces);
    tracing::info!(
        "{}: {found} tokens{short}, trained on {documents} documents, {bytes} bytes, {pieces} distinct pieces",
        out.display()
    );
    Ok(tokenizer)
}

/// Checks the ranges that the tokenizer does not check.
fn check(settings: &TrainSettings) -> Result<()> {
    if settings.kind == Kind::Bpe {
        let &TrainSettings { vocab_size, min_frequency, .. } = settings;
        return check_tokenizer(&TrainConfig { vocab_size, min_frequency }, "");
    }
    if settings.split != Split::Gpt2 && !settings.kind.is_byte_level() {
        return Err(Error::BadRequest("--split is for --kind bpe and unigram; leave it out".to_owned()));
    }
    if settings.min_frequency == 0 || settings.vocab_size > 1 << 24 {
        return Err(Error::BadRequest(format!(
            "min_frequency is {}, vocab_size is {}; they must be at least 1 and at most 16777216",
            settings.min_frequency, settings.vocab_size
        )));
    }
    Ok(())
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_trained_from_files_and_loads() {
        let dir = tempfile::tempdir().unwrap();
        let text = [dir.path().join("text.txt")];
        std::fs::write(&text[0], "The cat sat on the mat. The dog sat on the log.\n".repeat(50)).unwrap();
        for (name, kind) in Kind::ALL {
            let out = dir.path().join(name);
            let settings = TrainSettings { kind, vocab_size: 300, ..TrainSettings::default() };
            let trained = train_tokenizer(settings, &text, &out, false).unwrap();
            let loaded = Tokenizer::load(&out).unwrap();
            let ids = loaded.encode("The cat sat.").unwrap();
            assert_eq!(ids, trained.encode("The cat sat.").unwrap(), "{name}");
            assert!(!ids.is_empty() && ids.iter().all(|id| *id > 5), "{name}: {ids:?}");
        }
    }

    #[test]
    fn settings_that_do_not_fit_are_refused_before_a_folder_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let (text, out) = ([dir.path().join("text.txt")], dir.path().join("out"));
        std::fs::write(&text[0], "text").unwrap();
        let settings = TrainSettings { kind: Kind::Word, ..TrainSettings::default() };
        for (settings, named) in [
            (TrainSettings { split: Split::Gpt4, ..settings.clone() }, "--split is for --kind bpe"),
            (TrainSettings { min_frequency: 0, ..settings.clone() }, "min_frequency is 0"),
            (TrainSettings { vocab_size: 3, ..settings }, "vocab_size = 3"),
        ] {
            let message = train_tokenizer(settings, &text, &out, false).unwrap_err().to_string();
            assert!(message.contains(named) && !out.exists(), "{message}");
        }
    }
}
