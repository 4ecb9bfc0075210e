//! The command `llm-infer merge`: merges a LoRA adapter into its base model.

use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use llm_cli::{Failure, HubOption};
use llm_engine::TextModel;
use llm_model::gguf::is_gguf;
use llm_model::{Model, WeightDtype};
use llm_tokenizer::Tokenizer;

use crate::adapter::with_adapter;
use crate::convert::save;
use crate::failure::{input, io_failure, refuse_existing};

#[derive(Debug, Args)]
#[allow(clippy::doc_markdown, reason = "help texts have no backticks")]
#[command(after_help = "Example:\n  llm-infer merge --model runs/base --adapter runs/lora --out runs/merged")]
pub(crate) struct MergeArgs {
    /// Base model: a Hugging Face folder (config.json, model.safetensors), a .gguf file or org/name on the hub
    #[arg(short, long)]
    pub(crate) model: PathBuf,
    /// Folder of a PEFT LoRA adapter, or org/name on the hub; its tokenizer is copied if it has one, else that of the base model
    #[arg(long)]
    pub(crate) adapter: PathBuf,
    /// The weights that the adapter is added to
    #[arg(long, value_enum, default_value = "original")]
    merge_onto: MergeOnto,
    /// With --merge-onto quantized: the dtype of the base in training [default: "base_dtype" in the adapter's recipe.toml]
    #[arg(long, value_parser = dtype_parser())]
    base_dtype: Option<WeightDtype>,
    /// Folder to write; must not exist. Its weights have the dtype of the base, f32 if the base is quantised
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    pub(crate) hub: HubOption,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MergeOnto {
    /// The weights of the base as they are
    Original,
    /// The weights of the base after quantisation, on which a QLoRA adapter was trained
    Quantized,
}

fn dtype_parser() -> impl TypedValueParser<Value = WeightDtype> {
    let in_memory = WeightDtype::ALL.into_iter().filter(|dtype| *dtype != WeightDtype::F16);
    PossibleValuesParser::new(in_memory.map(WeightDtype::name)).try_map(|name| name.parse::<WeightDtype>())
}

/// Runs the command.
pub(crate) fn merge(args: &MergeArgs) -> Result<(), Failure> {
    refuse_existing(&args.out)?;
    let trained_on = base_dtype(&args.adapter)?;
    let base = Model::open(&args.model).map_err(input)?;
    let start = match (args.merge_onto, args.base_dtype.or(trained_on)) {
        (MergeOnto::Original, _) if args.base_dtype.is_some() => {
            return Err(Failure::input(
                "--base-dtype applies to --merge-onto quantized only; add it, or leave both out",
            ));
        }
        (MergeOnto::Original, _) => {
            if let Some(dtype @ WeightDtype::Quantized(_)) = trained_on {
                let adapter = args.adapter.display();
                tracing::warn!(
                    "{adapter}: was trained on {dtype} weights and is merged onto the original ones; \
                     `--merge-onto quantized` gives the weights that it was trained with"
                );
            }
            base.clone()
        }
        (MergeOnto::Quantized, Some(dtype)) => base.frozen_as(dtype).map_err(input)?,
        (MergeOnto::Quantized, None) => {
            let adapter = args.adapter.display();
            return Err(Failure::input(format!(
                "{adapter}: no recipe.toml says in which dtype its base was trained; give --base-dtype"
            )));
        }
    };
    let tokenizer = tokenizer(args)?;
    let merged = with_adapter(start, Some(&args.adapter))?.merged().map_err(input)?;
    let mut merged = merged.with_dtypes_of(&base).map_err(input)?;
    // The adapter was trained with the chat template of its tokenizer, so its end-of-turn token ends a reply.
    let tokenizer = tokenizer.map(Tokenizer::with_end_of_turn_as_eos);
    if let Some(format) = tokenizer.as_ref().and_then(|tokenizer| tokenizer.chat_format().ok()) {
        merged.set_end_of_turn(format.end_of_turn);
    }
    save(&merged, tokenizer.as_ref(), &args.out)?;
    let out = args.out.display();
    let next = match tokenizer {
        Some(tokenizer) if tokenizer.has_chat_template() => format!("llm-infer chat --model {out}"),
        Some(_) => format!("llm-infer generate --model {out} --prompt TEXT"),
        None => format!("llm-infer bench --model {out}"),
    };
    llm_cli::print_status(&format!(
        "{out}: the model with the adapter {} merged. Next: {next}\n",
        args.adapter.display()
    ))
}

/// The tokenizer of the adapter, else that of the base, if there is one.
fn tokenizer(args: &MergeArgs) -> Result<Option<Tokenizer>, Failure> {
    let has = |dir: &Path| ["tokenizer.json", "tokenizer.model"].into_iter().any(|name| dir.join(name).exists());
    match [&args.adapter, &args.model].into_iter().find(|dir| has(dir)) {
        Some(dir) => Tokenizer::load(dir).map(Some).map_err(input),
        None if is_gguf(&args.model) => Ok(Some(TextModel::from_gguf(&args.model).map_err(input)?.tokenizer)),
        None => Ok(None),
    }
}

/// The dtype in which `llm-train` trained the base of the adapter: `base_dtype` of `recipe.toml`, if the folder is a run.
fn base_dtype(adapter: &Path) -> Result<Option<WeightDtype>, Failure> {
    let path = adapter.join("recipe.toml");
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).map_err(|e| io_failure(path.display(), &e))?;
    let table: toml::Table = text.parse().map_err(|e| Failure::input(format!("{}: {e}", path.display())))?;
    let Some(value) = table.get("base_dtype") else { return Ok(None) };
    let dtype = value.as_str().and_then(|name| name.parse().ok());
    let wrong = || Failure::input(format!("{}: \"base_dtype\" is {value}; it must be a dtype", path.display()));
    dtype.map(Some).ok_or_else(wrong)
}
