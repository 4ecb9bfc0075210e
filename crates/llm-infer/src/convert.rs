//! The command `llm-infer convert`: converts a model to another file format.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use llm_cli::Failure;
use llm_engine::{Error, TextModel};
use llm_kernels::BlockFormat;
use llm_model::WeightFormat;
use llm_model::gguf::TensorType;

use crate::cli::input;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  llm-infer convert --model runs/chat --to gguf --quantize q8_0 --out chat.gguf")]
pub(crate) struct ConvertArgs {
    /// Model to convert: a Hugging Face folder (config.json, model.safetensors, tokenizer.json) or a .gguf file
    #[arg(short, long)]
    model: PathBuf,
    /// Output format
    #[arg(long, value_enum)]
    to: Format,
    /// Weight type of the matrices in the output [default: the type of the input]
    #[arg(long, value_enum)]
    quantize: Option<Kind>,
    /// Output file (gguf) or folder (safetensors); it must not exist
    #[arg(long)]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// One GGUF file, for llama.cpp and programs based on it
    Gguf,
    /// A Hugging Face folder with safetensors, for transformers
    Safetensors,
}

/// Weight type of the matrices in the output.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[allow(non_camel_case_types, reason = "ggml's names")]
#[value(rename_all = "snake_case")]
enum Kind {
    /// 32 bits per weight
    F32,
    /// 16 bits per weight: the range of f32, about 3 significant digits
    Bf16,
    /// 16 bits per weight: up to 65504, about 4 significant digits (gguf only)
    F16,
    /// 8.5 bits per weight (gguf only)
    Q8_0,
    /// 4.5 bits per weight (gguf only)
    Q4_0,
    /// 4.5 bits per weight, with finer scales; 8.5 bits if the row length is not a multiple of 256 (gguf only)
    Q4_K,
    /// 6.6 bits per weight; 8.5 bits if the row length is not a multiple of 256 (gguf only)
    Q6_K,
}

impl Kind {
    fn tensor_type(self) -> TensorType {
        match self {
            Self::F32 => TensorType::F32,
            Self::Bf16 => TensorType::Bf16,
            Self::F16 => TensorType::F16,
            Self::Q8_0 => TensorType::Quantized(BlockFormat::Q8_0),
            Self::Q4_0 => TensorType::Quantized(BlockFormat::Q4_0),
            Self::Q4_K => TensorType::Quantized(BlockFormat::Q4_K),
            Self::Q6_K => TensorType::Quantized(BlockFormat::Q6_K),
        }
    }
}

/// Runs the command.
pub(crate) fn convert(args: &ConvertArgs) -> Result<(), Failure> {
    if args.out.exists() {
        let out = args.out.display();
        return Err(Failure::input(format!("{out}: already exists; choose another --out or remove it first")));
    }
    let text_model = TextModel::open(&args.model).map_err(input)?;
    match args.to {
        Format::Gguf => text_model.save_gguf(&args.out, args.quantize.map(Kind::tensor_type)).map_err(input)?,
        Format::Safetensors => save_folder(text_model, args.quantize, &args.out)?,
    }
    llm_cli::print(&format!("{}\n", args.out.display()))
}

/// Writes a Hugging Face folder.
fn save_folder(text_model: TextModel, kind: Option<Kind>, out: &Path) -> Result<(), Failure> {
    let format = match kind {
        None if text_model.model.params().quantized().is_empty() => return save(&text_model, out),
        None | Some(Kind::F32) => WeightFormat::F32, // quantised matrices are dequantised
        Some(Kind::Bf16) => WeightFormat::Bf16,
        Some(kind) => {
            return Err(Failure::input(format!(
                "--quantize {kind:?}: a Hugging Face folder supports f32 and bf16 only; use one of them or omit --quantize"
            )));
        }
    };
    let model = text_model.model.frozen_as(format).map_err(input)?;
    save(&TextModel { model, ..text_model }, out)
}

/// Saves under a temporary name, then renames the folder, so an existing `out` is always complete.
fn save(text_model: &TextModel, out: &Path) -> Result<(), Failure> {
    let io = |cause: std::io::Error| Failure::input(format!("{}: {cause}", out.display()));
    let unfinished = llm_files::temp_folder(out).map_err(io)?;
    text_model.model.save(unfinished.path()).map_err(Error::from).map_err(input)?;
    text_model.tokenizer.save(unfinished.path()).map_err(Error::from).map_err(input)?;
    std::fs::rename(unfinished.path(), out).map_err(io)
}
