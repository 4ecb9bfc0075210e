//! Accuracy on minimal pairs of sentences in the format of `BLiMP` (Warstadt et al. 2020, arXiv 1912.00582): a folder of JSONL files, one for
//! each paradigm, with the keys `sentence_good` and `sentence_bad`.
//!
//! ```sh
//! cargo run --release -p llm-eval --example minimal_pairs -- MODEL FOLDER [PAIRS_PER_FILE]
//! ```
//!
//! A pair is right if the whole good sentence, after the token that begins a document, has the higher probability; a tie counts half. The
//! result is the mean over the paradigms, not over the pairs.

use std::error::Error;
use std::path::{Path, PathBuf};

use llm_engine::TextModel;
use llm_eval::stats::Spread;
use llm_eval::{Pair, pair_scores};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [model, folder, count @ ..] = &words[..] else { return Ok(()) };
    let count = count.first().map_or(Ok(usize::MAX), |word| word.parse())?;
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "jsonl"));
    files.sort();
    llm_kernels::with_threads(llm_kernels::default_threads(), || -> Result<(), Box<dyn Error + Send + Sync>> {
        let model = TextModel::open(model)?;
        let mut accuracies = Vec::new();
        for file in &files {
            let pairs: Vec<[String; 2]> = read(file)?.into_iter().take(count).collect();
            let pairs: Vec<Pair> =
                pairs.iter().map(|[good, bad]| Pair { prefix: "", good, bad, masked: 0..0 }).collect();
            let scores = pair_scores(&model.model, &model.tokenizer, &pairs)?;
            let accuracy = 100. * scores.iter().sum::<f64>() / scores.len().max(1) as f64;
            let name = file.file_stem().unwrap_or_default().to_string_lossy();
            println!("{accuracy:5.1} % of {} pairs: {name}", scores.len());
            accuracies.push(accuracy);
        }
        let Spread { n, mean, interval, .. } = Spread::of(&accuracies)?;
        println!("{mean:.1} % mean of {n} paradigms (95 % interval {:.1} to {:.1})", interval.low, interval.high);
        Ok(())
    })?
    .map_err(|error| error as Box<dyn Error>)
}

/// The good and the bad sentence of each line.
fn read(file: &Path) -> Result<Vec<[String; 2]>, Box<dyn Error + Send + Sync>> {
    let text = std::fs::read_to_string(file)?;
    let pair = |line: &str| -> Result<[String; 2], Box<dyn Error + Send + Sync>> {
        let row: serde_json::Value = serde_json::from_str(line)?;
        let sentence = |key: &str| {
            let missing = || format!("{}: a line has no text in \"{key}\"", file.display());
            row[key].as_str().map(str::to_owned).ok_or_else(missing)
        };
        Ok([sentence("sentence_good")?, sentence("sentence_bad")?])
    };
    text.lines().map(pair).collect()
}

#[test]
#[allow(clippy::unwrap_used, reason = "a test fails by it")]
fn both_sentences_of_a_line_are_read() {
    let file = std::env::temp_dir().join(format!("minimal-pairs-{}.jsonl", std::process::id()));
    std::fs::write(
        &file,
        "{\"sentence_good\": \"A dog sleeps.\", \"sentence_bad\": \"A dog sleep.\", \"UID\": \"x\"}\n",
    )
    .unwrap();
    assert_eq!(read(&file).unwrap(), [["A dog sleeps.", "A dog sleep."]]);
    std::fs::write(&file, "{\"sentence_good\": \"A dog sleeps.\"}\n").unwrap();
    assert!(read(&file).unwrap_err().to_string().contains("\"sentence_bad\""));
    std::fs::remove_file(file).unwrap();
}
