//! The command `llm-infer convert`: converts a model to another file format.

use std::path::{Path, PathBuf};

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use llm_cli::{Failure, HubOption};
use llm_engine::{Error, TextModel};
use llm_model::{Head, Model, Weight, WeightDtype};
use llm_tokenizer::Tokenizer;

use crate::dtype::bits;
use crate::failure::{input, io_failure, refuse_existing};

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  llm-infer convert --model runs/chat --to gguf --quantize q8_0 --out chat.gguf")]
pub(crate) struct ConvertArgs {
    /// Model to convert: a Hugging Face folder (config.json, model.safetensors, tokenizer.json), a .gguf file, org/name on the hub, or
    /// a .bin checkpoint of llama2.c with --tokenizer
    #[arg(short, long)]
    pub(crate) model: PathBuf,
    /// Tokenizer of a llama2.c checkpoint, such as tokenizer.bin or tok512.bin
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Output format
    #[arg(long, value_enum)]
    to: Format,
    /// Weight type of the matrices in the output [default: the type of the input]
    #[arg(long, value_parser = dtype_parser())]
    quantize: Option<WeightDtype>,
    /// File (gguf) or folder (safetensors) to write; must not exist
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    pub(crate) hub: HubOption,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// One GGUF file, for llama.cpp and programs based on it
    Gguf,
    /// A Hugging Face folder with safetensors, for transformers
    Safetensors,
}

/// The parser of `--quantize`.
fn dtype_parser() -> impl TypedValueParser<Value = WeightDtype> {
    let value = |dtype: WeightDtype| {
        let in_folders = matches!(dtype, WeightDtype::F32 | WeightDtype::Bf16);
        PossibleValue::new(dtype.name()).help(format!(
            "{}{}",
            bits(dtype),
            if in_folders { "" } else { " (gguf only)" }
        ))
    };
    PossibleValuesParser::new(WeightDtype::ALL.map(value)).try_map(|name| name.parse::<WeightDtype>())
}

/// Runs the command.
pub(crate) fn convert(args: &ConvertArgs) -> Result<(), Failure> {
    refuse_existing(&args.out)?;
    let checkpoint = args.model.extension().is_some_and(|extension| extension == "bin");
    let text_model = match &args.tokenizer {
        Some(tokenizer) if checkpoint => TextModel::from_llama2c(&args.model, tokenizer),
        Some(tokenizer) => {
            let tokenizer = tokenizer.display();
            let message = "only a .bin checkpoint of llama2.c has its tokenizer in a file of its own; omit the option";
            return Err(Failure::input(format!("--tokenizer {tokenizer}: {message}")));
        }
        None if checkpoint && args.model.is_file() => {
            let model = args.model.display();
            let message = "a checkpoint of llama2.c needs its tokenizer; give it with --tokenizer";
            return Err(Failure::input(format!("{model}: {message}")));
        }
        None => TextModel::open(&args.model),
    };
    let text_model = text_model.map_err(input)?;
    let generates = text_model.model.head() == Head::LanguageModel;
    match args.to {
        Format::Gguf => text_model.save_gguf(&args.out, args.quantize).map_err(input)?,
        Format::Safetensors => save_folder(text_model, args.quantize, &args.out)?,
    }
    let out = args.out.display();
    let next = if generates { format!(" Next: llm-infer generate --model {out} --prompt TEXT") } else { String::new() };
    llm_cli::print_status(&format!("{out}: done.{next}\n"))
}

/// Writes a Hugging Face folder.
fn save_folder(text_model: TextModel, dtype: Option<WeightDtype>, out: &Path) -> Result<(), Failure> {
    let dtype = match dtype {
        None if !is_quantized(&text_model.model) => return save(&text_model.model, Some(&text_model.tokenizer), out),
        None | Some(WeightDtype::F32) => WeightDtype::F32, // quantised matrices are dequantised
        Some(WeightDtype::Bf16) => WeightDtype::Bf16,
        Some(dtype) => {
            return Err(Failure::input(format!(
                "--quantize {dtype}: a Hugging Face folder supports f32 and bf16 only; use one of them or omit --quantize"
            )));
        }
    };
    let model = text_model.model.frozen_as(dtype).map_err(input)?;
    save(&model, Some(&text_model.tokenizer), out)
}

fn is_quantized(model: &Model) -> bool {
    model.params().iter().any(|(_, weight)| matches!(weight, Weight::Quantized(_)))
}

/// Saves under a temporary name, then renames the folder, so an existing `out` is always complete.
pub(crate) fn save(model: &Model, tokenizer: Option<&Tokenizer>, out: &Path) -> Result<(), Failure> {
    let io = |error: std::io::Error| io_failure(out.display(), &error);
    let unfinished = llm_files::temp_folder(out).map_err(io)?;
    model.save(unfinished.path()).map_err(Error::from).map_err(input)?;
    if let Some(tokenizer) = tokenizer {
        tokenizer.save(unfinished.path()).map_err(Error::from).map_err(input)?;
    }
    std::fs::rename(unfinished.path(), out).map_err(io)
}
