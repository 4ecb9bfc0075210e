//! The command `tokenizer report`: what tokenizers make of a text.

use std::path::PathBuf;

use clap::Args;
use llm_cli::HubOption;
use llm_data::{DocumentOptions, for_each_document};
use llm_tokenizer::{TextReport, Tokenizer};
use serde_json::{Value, json};

use super::load;
use crate::Result;

/// The tokens that are named: the longest ones, and those that cannot be reached.
const NAMED: usize = 5;

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  llm-train tokenizer report --tokenizer runs/tokenizer --tokenizer openai-community/gpt2 README.md docs/"
)]
pub(in crate::cli) struct Report {
    /// Text, Markdown, HTML, JSONL, CSV or Parquet files (also .gz and .zst), or folders of them
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Folder of a tokenizer or a model, or org/name on the Hugging Face hub; may be repeated
    #[arg(long, required = true, value_name = "DIR")]
    pub(in crate::cli) tokenizer: Vec<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(in crate::cli) hub: HubOption,
}

/// Runs the command; returns the text to print.
pub(super) fn report(args: &Report) -> Result<String> {
    let tokenizers = load(&args.tokenizer)?;
    let mut reports: Vec<TextReport> = tokenizers.iter().map(|loaded| TextReport::new(&loaded.tokenizer)).collect();
    // Of each tokenizer, the first document that does not come back.
    let mut changed: Vec<Option<String>> = vec![None; tokenizers.len()];
    let mut failure = None;
    let read = for_each_document(&args.files, &DocumentOptions::default(), &mut |document| {
        for (report, changed) in reports.iter_mut().zip(&mut changed) {
            match report.add(&document.text) {
                Ok(true) => {}
                Ok(false) => {
                    changed.get_or_insert_with(|| format!("{} {}", document.file.display(), document.row));
                }
                Err(error) => {
                    failure.get_or_insert(error);
                }
            }
        }
        Ok(())
    })?;
    if let Some(error) = failure {
        return Err(error.into());
    }
    let problems = read.to_string();
    if !problems.is_empty() {
        tracing::warn!("{}", problems.trim_end());
    }
    let mut columns = Vec::new();
    for ((loaded, report), changed) in tokenizers.iter().zip(&reports).zip(changed) {
        columns.push(numbers(&loaded.name, &loaded.tokenizer, report, changed)?);
    }
    if args.json {
        return Ok(format!("{}\n", Value::from(columns)));
    }
    Ok(table(&columns))
}

/// The numbers of a tokenizer.
fn numbers(name: &str, tokenizer: &Tokenizer, report: &TextReport, changed: Option<String>) -> Result<Value> {
    let named = |id: u32| json!({ "id": id, "token": tokenizer.token(id).unwrap_or_default() });
    let unreachable = tokenizer.unreachable_tokens()?;
    let longest = report
        .longest(NAMED)
        .into_iter()
        .map(|(id, bytes)| json!({ "id": id, "token": tokenizer.token(id).unwrap_or_default(), "bytes": bytes }));
    Ok(json!({
        "tokenizer": name,
        "vocab_size": tokenizer.vocab_size(),
        "documents": report.texts,
        "bytes": report.bytes,
        "words": report.words,
        "tokens": report.tokens,
        "bytes_per_token": report.bytes_per_token(),
        "tokens_per_word": report.tokens_per_word(),
        "used_tokens": report.used(),
        "used_share": report.used() as f64 / tokenizer.vocab_size().max(1) as f64,
        "unknown_tokens": report.unknown(),
        "changed_documents": report.changed,
        "first_changed_document": changed,
        "unreachable_tokens": unreachable.len(),
        "unreachable": unreachable.iter().take(NAMED).map(|&id| named(id)).collect::<Vec<_>>(),
        "longest": longest.collect::<Vec<_>>(),
        "megabytes_per_second": report.megabytes_per_second(),
    }))
}

/// What a line of the table shows of a tokenizer.
type Cell = Box<dyn Fn(&Value) -> String>;

/// A line for each number, a column for each tokenizer.
fn table(columns: &[Value]) -> String {
    let count = |key: &'static str| {
        move |column: &Value| column[key].as_u64().map_or_else(|| "-".to_owned(), |n| n.to_string())
    };
    let ratio = |key: &'static str| move |column: &Value| format!("{:.3}", column[key].as_f64().unwrap_or_default());
    let names = |key: &'static str| {
        move |column: &Value| {
            let tokens = column[key].as_array().into_iter().flatten();
            tokens.map(|token| shortened(&token["token"].to_string())).collect::<Vec<_>>().join("\n")
        }
    };
    let lines: Vec<(&str, Cell)> = vec![
        ("vocabulary", Box::new(count("vocab_size"))),
        ("documents", Box::new(count("documents"))),
        ("bytes", Box::new(count("bytes"))),
        ("tokens", Box::new(count("tokens"))),
        ("bytes per token", Box::new(ratio("bytes_per_token"))),
        ("tokens per word", Box::new(ratio("tokens_per_word"))),
        ("tokens of the vocabulary that occur", Box::new(count("used_tokens"))),
        ("their share", Box::new(|column| format!("{:.1}%", 100. * column["used_share"].as_f64().unwrap_or_default()))),
        ("unknown tokens", Box::new(count("unknown_tokens"))),
        ("documents that decode to another text", Box::new(count("changed_documents"))),
        ("the first of them", Box::new(|column| column["first_changed_document"].as_str().unwrap_or("-").to_owned())),
        ("tokens that no text gives", Box::new(count("unreachable_tokens"))),
        ("some of them", Box::new(names("unreachable"))),
        ("longest tokens that occur", Box::new(names("longest"))),
        ("MB/s", Box::new(|column| format!("{:.1}", column["megabytes_per_second"].as_f64().unwrap_or_default()))),
    ];
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    let names = columns.iter().map(|column| column["tokenizer"].as_str().unwrap_or_default().to_owned());
    table.set_header(std::iter::once(String::new()).chain(names));
    for (name, cell) in &lines {
        table.add_row(std::iter::once((*name).to_owned()).chain(columns.iter().map(cell)));
    }
    format!("{table}\n")
}

/// A name of at most 24 characters.
fn shortened(name: &str) -> String {
    if name.chars().count() <= 24 { name.to_owned() } else { name.chars().take(23).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use llm_tokenizer::{TrainConfig, train_bpe};

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        report: Report,
    }

    #[test]
    fn a_report_has_a_column_for_each_tokenizer() {
        let dir = tempfile::tempdir().unwrap();
        let text = "the cat sat on the mat and the cat sat";
        let folders = [265, 300].map(|vocab_size| {
            let folder = dir.path().join(vocab_size.to_string());
            train_bpe(&TrainConfig { vocab_size, min_frequency: 2 }, [text].iter()).unwrap().save(&folder).unwrap();
            folder.display().to_string()
        });
        let file = dir.path().join("text.txt");
        std::fs::write(&file, text).unwrap();
        let run = |more: &[&str]| {
            let words = ["report", "--tokenizer", &folders[0], "--tokenizer", &folders[1], file.to_str().unwrap()];
            report(&Program::parse_from(words.iter().chain(more)).report).unwrap()
        };
        let columns: Vec<Value> = serde_json::from_str(&run(&["--json"])).unwrap();
        assert_eq!(columns.len(), 2);
        for column in &columns {
            assert_eq!((column["bytes"].as_u64(), column["words"].as_u64()), (Some(text.len() as u64), Some(10)));
            assert_eq!((&column["changed_documents"], &column["unreachable_tokens"]), (&0.into(), &0.into()));
            assert_eq!(column["unknown_tokens"], Value::Null);
        }
        let per_token = |at: usize| columns[at]["bytes_per_token"].as_f64().unwrap();
        assert!(per_token(1) > per_token(0), "more tokens in the vocabulary, fewer in the text");
        let table = run(&[]);
        assert!(table.lines().count() > 12 && table.contains("bytes per token"), "{table}");
    }
}
