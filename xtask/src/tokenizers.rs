//! `cargo xtask bench tokenizers`: our encoder and our trainer of byte-level BPE beside those of the crate `tokenizers`, in this process,
//! alternately, on the same text.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use llm_tokenizer::{Tokenizer, TrainSettings, Trainer};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

#[derive(Args)]
pub struct TokenizerOptions {
    /// Text files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Folder of a tokenizer to encode with; may be repeated
    #[arg(long, value_name = "DIR")]
    tokenizer: Vec<PathBuf>,
    /// Size of the vocabulary that both trainers learn
    #[arg(long, default_value_t = 8192)]
    vocab_size: usize,
    /// Number of runs of each program, at least 1
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
}

/// Documents have about this number of bytes, and end at a line end.
const DOCUMENT: usize = 10_000;

/// The arguments of a second process with the same options.
pub fn arguments(options: &TokenizerOptions) -> Vec<String> {
    let mut arguments = vec!["bench".to_owned(), "tokenizers".to_owned()];
    arguments.extend(options.files.iter().map(|file| file.display().to_string()));
    for tokenizer in &options.tokenizer {
        arguments.extend(["--tokenizer".to_owned(), tokenizer.display().to_string()]);
    }
    for (name, value) in [("--vocab-size", options.vocab_size), ("--rounds", options.rounds)] {
        arguments.extend([name.to_owned(), value.to_string()]);
    }
    arguments
}

/// Measures and prints the tables.
pub fn run(options: &TokenizerOptions) -> Result<(), String> {
    let mut documents = Vec::new();
    for file in &options.files {
        let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
        let mut document = String::new();
        for line in text.split_inclusive('\n') {
            document.push_str(line);
            if document.len() >= DOCUMENT {
                documents.push(std::mem::take(&mut document));
            }
        }
        documents.push(document);
    }
    documents.retain(|document| !document.is_empty());
    let bytes: usize = documents.iter().map(String::len).sum();
    println!("{:.1} MB in {} documents, medians of {} runs", bytes as f64 / 1e6, documents.len(), options.rounds);
    for folder in &options.tokenizer {
        encode(folder, &documents, options.rounds)?;
    }
    train(&documents, options)
}

/// Encoding, one document after the other on one thread.
fn encode(folder: &Path, documents: &[String], rounds: usize) -> Result<(), String> {
    let ours = Tokenizer::load(folder).map_err(|e| e.to_string())?;
    let theirs = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).map_err(|e| e.to_string())?;
    let ours =
        || documents.iter().map(|text| ours.encode(text).map_err(|e| e.to_string())).collect::<Result<Vec<_>, _>>();
    let theirs = || {
        let ids = |text: &String| theirs.encode_fast(text.as_str(), false).map(|encoding| encoding.get_ids().to_vec());
        documents.iter().map(|text| ids(text).map_err(|e| e.to_string())).collect::<Result<Vec<_>, _>>()
    };
    let (ours, theirs, [a, b]) = alternate(ours, theirs, rounds)?;
    let different = ours.iter().zip(&theirs).filter(|(ours, theirs)| ours != theirs).count();
    let tokens: usize = ours.iter().map(Vec::len).sum();
    let title = format!("encode with {}, {tokens} tokens, {different} documents differ", folder.display());
    print(&title, documents, a, b);
    Ok(())
}

/// Training of byte-level BPE with the pattern of GPT-2, on all threads.
fn train(documents: &[String], options: &TokenizerOptions) -> Result<(), String> {
    let settings = TrainSettings { vocab_size: options.vocab_size, ..TrainSettings::default() };
    let ours = || {
        let mut trainer = Trainer::new(&settings).map_err(|e| e.to_string())?;
        for document in documents {
            trainer.add(document.clone(), &PathBuf::new().into());
        }
        Ok(trainer.finish().map_err(|e| e.to_string())?.0.vocab_size())
    };
    let theirs = || {
        let trainer = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(options.vocab_size)
            .min_frequency(settings.min_frequency)
            .max_token_length(Some(settings.max_token_length))
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let mut tokenizer = tokenizers::Tokenizer::new(BPE::default());
        tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
        tokenizer.train(&mut TrainerWrapper::from(trainer), documents.iter().cloned()).map_err(|e| e.to_string())?;
        Ok(tokenizer.get_vocab_size(false))
    };
    let (ours, theirs, [a, b]) = alternate(ours, theirs, options.rounds)?;
    print(&format!("train BPE, {ours} tokens (tokenizers: {theirs})"), documents, a, b);
    Ok(())
}

/// Runs both in turn, `rounds` times after a warm-up; returns the last results and the median times in seconds.
fn alternate<T>(
    ours: impl Fn() -> Result<T, String>,
    theirs: impl Fn() -> Result<T, String>,
    rounds: usize,
) -> Result<(T, T, [f64; 2]), String> {
    let mut last = (ours()?, theirs()?);
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        let start = Instant::now();
        last.0 = ours()?;
        times[0].push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        last.1 = theirs()?;
        times[1].push(start.elapsed().as_secs_f64());
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let [a, b] = &mut times;
    Ok((last.0, last.1, [median(a), median(b)]))
}

fn print(title: &str, documents: &[String], ours: f64, theirs: f64) {
    let megabytes = documents.iter().map(String::len).sum::<usize>() as f64 / 1e6;
    println!("\n{title}\n");
    println!("| | seconds | MB/s | ratio |\n|---|---|---|---|");
    println!("| ours | {ours:.3} | {:.1} | {:.2} |", megabytes / ours, theirs / ours);
    println!("| tokenizers | {theirs:.3} | {:.1} | 1 |", megabytes / theirs);
}

#[cfg(test)]
mod tests {
    use llm_tokenizer::{TrainConfig, train_bpe};

    use super::*;

    #[test]
    fn both_encoders_and_trainers_run_on_the_same_text() {
        let dir = tempfile::tempdir().unwrap();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
        let text = std::fs::read_to_string(&file).unwrap();
        train_bpe(&TrainConfig { vocab_size: 400, min_frequency: 2 }, [text].iter()).unwrap().save(dir.path()).unwrap();
        let options =
            TokenizerOptions { files: vec![file], tokenizer: vec![dir.path().to_owned()], vocab_size: 500, rounds: 1 };
        run(&options).unwrap();
        let missing = TokenizerOptions { files: vec![PathBuf::from("nowhere.txt")], ..options };
        assert!(run(&missing).unwrap_err().starts_with("nowhere.txt: "));
    }
}
