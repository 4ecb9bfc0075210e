//! The command `clean`.

use std::path::{Path, PathBuf};

use clap::Args;
use llm_data::clean::{CleanOptions, CleanRecipe, clean};
use llm_data::{DocumentOptions, Markup};

use crate::Error;
use crate::run::Event;

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  llm-train clean --input corpus/ --recipe english --out runs/clean\n\nThe recipes: llm-train recipe"
)]
pub(super) struct Clean {
    /// Files or folders of documents (text, Markdown, HTML, JSONL, JSON, CSV, Parquet, also .gz or .zst)
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    input: Vec<PathBuf>,
    /// Recipe: a TOML file, or one of basic, english, fineweb
    #[arg(long, default_value = "basic", value_name = "NAME|FILE")]
    recipe: String,
    /// Folder to write; must not exist
    #[arg(long, required_unless_present = "dry_run", value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write nothing; print the counts and the clusters of near duplicates, the largest first
    #[arg(long, conflicts_with = "out")]
    dry_run: bool,
    /// Evaluation sets: documents with 13 words in a row of them are removed by the step `decontamination` of the recipe
    #[arg(long, num_args = 1.., value_name = "PATH")]
    evaluation: Vec<PathBuf>,
    /// Largest share of documents that may be removed as near duplicates, 0 to 1 [default: the recipe's, 0.5]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    max_removed: Option<f64>,
    /// Literal between the documents of a text file, such as `<|endoftext|>`; \n, \t and \f are a line end, a tab and a form feed
    /// [default: a text file is one document]
    #[arg(long, value_name = "TEXT", value_parser = unescaped)]
    separator: Option<String>,
    /// Remove the markup of .md and .html files
    #[arg(long)]
    strip_markup: bool,
    /// Stop at the first row that cannot be read [default: leave it out and count it]
    #[arg(long)]
    strict: bool,
}

fn share(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if (0. ..=1.).contains(&number) { Ok(number) } else { Err(format!("{text} must be from 0 to 1")) }
}

#[allow(clippy::unnecessary_wraps, reason = "a parser of clap")]
fn unescaped(text: &str) -> Result<String, String> {
    Ok(text.replace("\\n", "\n").replace("\\t", "\t").replace("\\f", "\u{c}"))
}

/// Cleans a corpus; returns the counts.
pub(super) fn run(args: &Clean, observer: &mut dyn FnMut(Event)) -> Result<String, Error> {
    let recipe = CleanRecipe::read(&args.recipe)?;
    let options = CleanOptions {
        reading: DocumentOptions {
            separator: args.separator.clone(),
            markup: if args.strip_markup { Markup::Strip } else { Markup::Keep },
            strict: args.strict,
        },
        evaluation: args.evaluation.clone(),
        max_removed: args.max_removed,
    };
    let total = args.input.iter().map(|path| bytes(path)).sum();
    observer(Event::Begin { stage: "clean", total, done: 0, unit: "bytes" });
    let report = clean(&args.input, &recipe, args.out.as_deref(), &options, &mut |done| {
        observer(Event::Progress { done: done.min(total), message: "" });
    })?;
    observer(Event::End);
    Ok(match &args.out {
        Some(out) => {
            format!("{report}{out}: done. Next: llm-train prepare --train {out}/text ...\n", out = out.display())
        }
        None => report.to_string(),
    })
}

/// The size of the files at a path, for the progress bar; 0 if unknown.
fn bytes(path: &Path) -> u64 {
    match path.is_dir() {
        true => std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| bytes(&entry.path())).sum(),
        false => path.metadata().map_or(0, |data| data.len()),
    }
}
