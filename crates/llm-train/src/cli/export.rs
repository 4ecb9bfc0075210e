//! The command `export-shards`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use llm_data::ExportFormat;

use crate::Error;

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  llm-train export-shards --data runs/shards --format llm-c --out runs/llm-c\n\nThe other way: llm-train prepare \
                  --train FILE.bin"
)]
pub(super) struct ExportShards {
    /// Folder of token shards, written by `llm-train prepare`
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Format of the files
    #[arg(long)]
    format: Format,
    /// Folder to write: .bin files, for Megatron-LM also .idx; must not exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// llm.c and modded-nanogpt: .bin with a header
    LlmC,
    /// Megatron-LM: .bin and .idx
    Megatron,
}

/// Writes the files; returns the text to print.
pub(super) fn export_shards(args: &ExportShards) -> Result<String, Error> {
    let format = match args.format {
        Format::LlmC => ExportFormat::LlmC,
        Format::Megatron => ExportFormat::Megatron,
    };
    let splits = llm_data::export_shards(&args.data, format, &args.out)?;
    Ok(format!("{}: done, {}\n", args.out.display(), splits.join(" and ")))
}
