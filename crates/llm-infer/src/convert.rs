//! `llm-infer convert`: a model from one kind of file to another.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use llm_cli::Failure;
use llm_kernels::BlockFormat;
use llm_model::WeightFormat;
use llm_model::gguf::TensorType;

use crate::cli::input;
use crate::{Error, TextModel};

#[derive(Debug, Args)]
pub(crate) struct Convert {
    /// A Hugging Face folder, or a .gguf file
    model: PathBuf,
    /// What to write
    #[arg(long, value_enum)]
    to: Format,
    /// What the matrices are written in; without it as they are
    #[arg(long, value_enum)]
    quantize: Option<Kind>,
    /// The file (gguf) or the folder (safetensors) to write; it must not be there yet
    #[arg(long)]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// One file for llama.cpp and the programs that are built on it
    Gguf,
    /// A Hugging Face folder
    Safetensors,
}

/// What matrices are written in.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[allow(non_camel_case_types, reason = "ggml's names")]
#[value(rename_all = "snake_case")]
enum Kind {
    /// 4 bytes for each number
    F32,
    /// 2 bytes, with three digits and the range of f32
    Bf16,
    /// 2 bytes, with four digits, up to 65504
    F16,
    /// 8.5 bits (gguf)
    Q8_0,
    /// 4.5 bits (gguf)
    Q4_0,
    /// 4.5 bits, with finer scales; rows of no multiple of 256 numbers take 8.5 (gguf)
    Q4_K,
    /// 6.6 bits; rows of no multiple of 256 numbers take 8.5 (gguf)
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

/// Converts as the arguments say.
pub(crate) fn convert(args: &Convert) -> Result<(), Failure> {
    if args.out.exists() {
        let out = args.out.display();
        return Err(Failure::input(format!("{out}: is there already; name another --out, or remove it first")));
    }
    let text_model = TextModel::open(&args.model).map_err(input)?;
    match args.to {
        Format::Gguf => text_model.save_gguf(&args.out, args.quantize.map(Kind::tensor_type)).map_err(input)?,
        Format::Safetensors => save_folder(text_model, args.quantize, &args.out)?,
    }
    llm_cli::print(&format!("{}\n", args.out.display()))
}

/// Writes a Hugging Face folder under another name first, so that a folder of this name is whole.
fn save_folder(text_model: TextModel, kind: Option<Kind>, out: &Path) -> Result<(), Failure> {
    let format = match kind {
        None if text_model.model.params().quantized().is_empty() => return save(&text_model, out),
        None | Some(Kind::F32) => WeightFormat::F32, // blocks are widened
        Some(Kind::Bf16) => WeightFormat::Bf16,
        Some(kind) => {
            return Err(Failure::input(format!(
                "--quantize {kind:?}: a Hugging Face folder is written in f32 or bf16; or leave --quantize out"
            )));
        }
    };
    let model = text_model.model.frozen_as(format).map_err(input)?;
    save(&TextModel { model, ..text_model }, out)
}

fn save(text_model: &TextModel, out: &Path) -> Result<(), Failure> {
    let io = |cause: std::io::Error| Failure::input(format!("{}: {cause}", out.display()));
    let unfinished = llm_files::temp_folder(out).map_err(io)?;
    text_model.model.save(unfinished.path()).map_err(Error::from).map_err(input)?;
    text_model.tokenizer.save(unfinished.path()).map_err(Error::from).map_err(input)?;
    std::fs::rename(unfinished.path(), out).map_err(io)
}
