//! The command `feedback report`.

use std::path::PathBuf;

use clap::Args;
use llm_feedback::report::{ReportOptions, report};
use llm_feedback::store::Store;

use crate::Error;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  llm-train feedback report --db votes.sqlite")]
pub(in crate::cli) struct Report {
    /// File of the database
    #[arg(long, value_name = "FILE")]
    db: PathBuf,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    /// A judgement in fewer seconds counts as too fast
    #[arg(long, default_value_t = 1.5, value_name = "SECONDS")]
    too_fast: f64,
    /// Bootstrap samples for the intervals of strengths
    #[arg(long, default_value_t = 1000, value_name = "N")]
    samples: usize,
}

/// The report as text.
pub(super) fn run_report(args: &Report) -> Result<String, Error> {
    if !(0. ..=86_400.).contains(&args.too_fast) {
        return Err(Error::BadRequest(format!("--too-fast is {}; it must be from 0 to 86400 seconds", args.too_fast)));
    }
    let too_fast_ms = (args.too_fast * 1000.).round() as i64;
    let options = ReportOptions { too_fast_ms, samples: args.samples, ..ReportOptions::default() };
    let found = report(&Store::open_existing(&args.db)?, &options)?;
    match args.json {
        false => Ok(found.to_string()),
        true => serde_json::to_string_pretty(&found)
            .map(|json| json + "\n")
            .map_err(|error| Error::Internal(format!("report: {error}"))),
    }
}
