//! The commands `tokenizer`.

mod inspect;
mod report;

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use llm_cli::HubOption;
use llm_tokenizer::{Kind, Split, Ties, TrainSettings};

use crate::Error;
use crate::recipes::train_tokenizer;
use inspect::Inspect;
use report::Report;

#[derive(Debug, Subcommand)]
pub(super) enum Tokenizer {
    /// Train a tokenizer on text: BPE, unigram, WordPiece, words or characters
    Train(Train),
    /// Show how a text is cut into tokens
    Inspect(Inspect),
    /// Compare what tokenizers make of a text
    Report(Report),
}

impl Tokenizer {
    /// The tokenizers that are read, which may be names on the hub.
    pub(super) fn tokenizers(&mut self) -> (HubOption, &mut [PathBuf]) {
        match self {
            Self::Train(_) => (HubOption::default(), &mut []),
            Self::Inspect(args) => (args.hub, &mut args.tokenizer),
            Self::Report(args) => (args.hub, &mut args.tokenizer),
        }
    }
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  llm-train tokenizer train --input corpus/ --out runs/tokenizer --vocab-size 4096 --split gpt4\n  \
                  llm-train tokenizer train --input plays.txt --out runs/characters --kind char"
)]
pub(super) struct Train {
    /// Text, Markdown, HTML, JSONL, CSV or Parquet files (also .gz and .zst), or folders of them
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    input: Vec<PathBuf>,
    /// Folder to write; must not exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What the tokens are. `bpe` and `unigram` are made of bytes and encode any text; the others encode what they do not know as <unk>
    #[arg(long, default_value = "bpe", value_name = "KIND", value_parser = one_of(&Kind::ALL))]
    kind: Kind,
    /// Pieces of the text that bpe and unigram encode separately: the pattern of GPT-2, GPT-4, Llama 3, or GPT-4 with two digits
    #[arg(long, default_value = "gpt2", value_name = "SPLIT", value_parser = one_of(&Split::ALL))]
    split: Split,
    /// Largest number of tokens in the vocabulary
    #[arg(long, default_value_t = 2048, value_name = "N")]
    vocab_size: usize,
    /// Merge only pairs, and keep only words and characters, that occur at least N times
    #[arg(long, default_value_t = 2, value_name = "N")]
    min_frequency: u64,
    /// Longest token of bpe, unigram and wordpiece, in bytes, from 2 to 1024
    #[arg(long, default_value_t = 32, value_name = "BYTES")]
    max_token_length: usize,
}

/// Parses the name of a value of a table.
fn one_of<T: Copy + Send + Sync + 'static>(all: &'static [(&'static str, T)]) -> impl TypedValueParser<Value = T> {
    let names = PossibleValuesParser::new(all.iter().map(|(name, _)| *name));
    names.try_map(|name| all.iter().find(|(known, _)| *known == name).map(|(_, value)| *value).ok_or("unknown name"))
}

/// Runs a command; returns the text to print.
pub(super) fn run(command: Tokenizer) -> Result<String, Error> {
    match command {
        Tokenizer::Train(args) => train(args),
        Tokenizer::Inspect(args) => inspect::inspect(&args),
        Tokenizer::Report(args) => report::report(&args),
    }
}

fn train(args: Train) -> Result<String, Error> {
    let settings = TrainSettings {
        kind: args.kind,
        split: args.split,
        vocab_size: args.vocab_size,
        min_frequency: args.min_frequency,
        max_token_length: args.max_token_length,
        ties: Ties::Ids,
    };
    train_tokenizer(settings, &args.input, &args.out, false)?;
    let out = args.out.display();
    Ok(format!("{out}: done. Next: llm-train prepare --tokenizer {out} --train TEXT --out SHARDS\n"))
}

/// A tokenizer with its name: the folder, or the name on the hub.
struct LoadedTokenizer {
    name: String,
    tokenizer: llm_tokenizer::Tokenizer,
}

/// Loads the tokenizers of folders.
fn load(paths: &[PathBuf]) -> Result<Vec<LoadedTokenizer>, Error> {
    let load = |path: &PathBuf| {
        let name = llm_files::hub_name(path).unwrap_or_else(|| path.display().to_string());
        Ok(LoadedTokenizer { name, tokenizer: llm_tokenizer::Tokenizer::load(path)? })
    };
    paths.iter().map(load).collect()
}
