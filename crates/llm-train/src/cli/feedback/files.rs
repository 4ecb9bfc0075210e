//! The commands `feedback import` and `feedback export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use llm_feedback::exchange::{Format, export, import, import_items};
use llm_feedback::store::{Imported, Store};

use crate::Error;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  llm-train feedback import --db votes.sqlite items.jsonl\n  llm-train feedback import --db votes.sqlite --from \
                  kway votes.jsonl"
)]
pub(in crate::cli) struct Import {
    /// File of the database; made if it does not exist
    #[arg(long, value_name = "FILE")]
    db: PathBuf,
    /// Format of the files
    #[arg(long, default_value = "items", value_name = "FORMAT")]
    from: ImportFormat,
    /// Name of the annotator, for the formats trl and kto, which have none
    #[arg(long, default_value = "imported", value_name = "NAME")]
    annotator: String,
    /// Files to read
    #[arg(required = true, value_name = "PATH")]
    files: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ImportFormat {
    /// Prompts with answers to judge: `prompt` (text or messages), `answers`, optionally `id`, `source` and `gold_order`
    Items,
    /// Pairs: `prompt`, `chosen`, `rejected`
    Trl,
    /// Rankings: `id`, `prompt`, `answers`, `ranks`, `annotator`, `shown`
    Kway,
    /// Single answers: `prompt`, `completion`, `label`
    Kto,
    /// Battles of Chatbot Arena
    Arena,
    /// Records of Argilla with a ranking
    Argilla,
    /// Tasks of Label Studio with a ranker
    Labelstudio,
}

impl ImportFormat {
    /// The format of judgements; none for items.
    fn judgements(self) -> Option<Format> {
        match self {
            Self::Items => None,
            Self::Trl => Some(Format::Trl),
            Self::Kway => Some(Format::Kway),
            Self::Kto => Some(Format::Kto),
            Self::Arena => Some(Format::Arena),
            Self::Argilla => Some(Format::Argilla),
            Self::Labelstudio => Some(Format::Labelstudio),
        }
    }
}

/// Adds the records of files.
pub(super) fn run_import(args: &Import) -> Result<String, Error> {
    let store = Store::open(&args.db)?;
    let mut text = String::new();
    for file in &args.files {
        let done = match args.from.judgements() {
            None => Imported { items: import_items(&store, file)?, ..Imported::default() },
            Some(format) => import(&store, file, format, &args.annotator)?,
        };
        let (items, judgements) = (done.items.added, done.judgements);
        let present = done.items.present + done.present;
        text += &format!("{}: {items} new items, {judgements} new judgements", file.display());
        text += &if present > 0 { format!(", {present} were there already\n") } else { "\n".to_owned() };
    }
    Ok(text)
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  llm-train feedback export --db votes.sqlite --to kway --out rankings.jsonl\n\nThen: llm-train reward --data \
                        rankings.jsonl ..."
)]
pub(in crate::cli) struct Export {
    /// File of the database
    #[arg(long, value_name = "FILE")]
    db: PathBuf,
    /// Format of the file
    #[arg(long, value_name = "FORMAT")]
    to: ExportFormat,
    /// File to write; must not exist
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ExportFormat {
    /// Pairs for reward models and DPO: `prompt`, `chosen`, `rejected`; ties are left out
    Trl,
    /// Rankings with ties for reward models: `id`, `prompt`, `answers`, `ranks`, `annotator`, `shown`
    Kway,
    /// Single answers with a label, from grades and "all bad": `prompt`, `completion`, `label`
    Kto,
    /// Battles of Chatbot Arena
    Arena,
    /// Records of Argilla with a ranking
    Argilla,
    /// Tasks of Label Studio with a ranker
    Labelstudio,
}

/// Writes the judgements.
pub(super) fn run_export(args: &Export) -> Result<String, Error> {
    let format = match args.to {
        ExportFormat::Trl => Format::Trl,
        ExportFormat::Kway => Format::Kway,
        ExportFormat::Kto => Format::Kto,
        ExportFormat::Arena => Format::Arena,
        ExportFormat::Argilla => Format::Argilla,
        ExportFormat::Labelstudio => Format::Labelstudio,
    };
    let out = &args.out;
    if out.exists() {
        return Err(Error::BadRequest(format!("{}: the file exists; name another file", out.display())));
    }
    let (text, done) = export(&Store::open_existing(&args.db)?, format)?;
    if done.records == 0 {
        let reasons: Vec<String> = done.left_out.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let reasons = if reasons.is_empty() { "no judgements".to_owned() } else { reasons.join(", ") };
        let db = args.db.display();
        return Err(Error::BadRequest(format!("{db}: there is nothing to export in this format ({reasons})")));
    }
    llm_files::write_atomic(out, |file| file.write_all(text.as_bytes())).map_err(Error::io(out))?;
    let left_out: Vec<String> = done.left_out.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    let left_out = if left_out.is_empty() { String::new() } else { format!("; left out: {}", left_out.join(", ")) };
    Ok(format!("{}: {} records{left_out}\n", out.display(), done.records))
}
