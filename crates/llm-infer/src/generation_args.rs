//! The options of the commands that generate text.

use std::path::PathBuf;

use clap::Args;
use llm_cli::{DeviceOption, HubOption};

use crate::dtype::Dtype;
use crate::prompt::PromptArgs;
use crate::sampling_args::SamplingArgs;

/// Options of `generate` and `chat`.
#[derive(Debug, Args)]
#[allow(clippy::doc_markdown, reason = "help texts have no backticks")]
pub(crate) struct GenerationArgs {
    /// Model: a Hugging Face folder (config.json, model.safetensors, tokenizer.json), a .gguf file, or a name on the Hugging Face hub,
    /// such as HuggingFaceTB/SmolLM2-135M or org/name@revision
    #[arg(short, long)]
    pub(crate) model: PathBuf,
    /// Folder of a PEFT LoRA adapter for the model, or org/name on the hub; its tokenizer is used if it has one
    #[arg(long)]
    pub(crate) adapter: Option<PathBuf>,
    /// Weight dtype in memory
    #[arg(long, value_parser = Dtype::parser(), default_value = "mapped")]
    pub(crate) dtype: Dtype,
    /// Variables of the chat template as a JSON object, such as '{"enable_thinking": false}'
    #[arg(long, value_name = "JSON")]
    pub(crate) template_kwargs: Option<String>,
    /// Date that a chat template writes as today [default: today]
    #[arg(long, value_name = "YYYY-MM-DD")]
    pub(crate) date: Option<String>,
    #[command(flatten)]
    pub(crate) prompt: PromptArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) device: DeviceOption,
    #[command(flatten)]
    pub(crate) hub: HubOption,
}
