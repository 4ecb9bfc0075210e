//! The commands of `llm-infer` and their options.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use llm_cli::{DeviceOption, GLOBAL_HEADING, HubOption, ShellCommand, Verbosity};

use crate::attention::AttentionArgs;
use crate::chat::ChatArgs;
use crate::convert::ConvertArgs;
use crate::dtype::Dtype;
use crate::generate::GenerateArgs;
use crate::merge::MergeArgs;
use crate::serve::ServeArgs;
use crate::temperature::TemperatureArgs;

/// Generate text with a language model.
#[derive(Debug, Parser)]
#[command(
    name = "llm-infer",
    version,
    about,
    after_help = "Example:\n  llm-infer generate --model runs/lifecycle/aligned \"What is the capital of France?\""
)]
pub struct Arguments {
    /// Number of compute threads, at least 1 [default: one per physical core]
    #[arg(long, global = true, value_name = "N", display_order = 100, help_heading = GLOBAL_HEADING)]
    pub(crate) threads: Option<usize>,
    /// How much to print on standard error.
    #[command(flatten)]
    pub verbosity: Verbosity,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Generate a reply to one prompt
    Generate(GenerateArgs),
    /// Chat with a model in the terminal
    Chat(ChatArgs),
    /// Serve a model to programs and browsers: the OpenAI API and a chat page
    Serve(ServeArgs),
    /// Convert a model to GGUF (llama.cpp) or safetensors (transformers)
    Convert(ConvertArgs),
    /// Merge a LoRA adapter into its base model
    Merge(MergeArgs),
    /// Write the logits of a sequence of token ids to a safetensors file
    Logits(LogitsArgs),
    /// Show what a word looks at: attention by layer and head
    Attention(AttentionArgs),
    /// Compare the answers to a prompt at several temperatures
    Temperature(TemperatureArgs),
    /// Measure prefill and decode throughput; prints a JSON object
    Bench(BenchArgs),
    #[command(flatten)]
    Shell(ShellCommand),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  llm-infer logits --model runs/base --ids 1,2,3 --out logits.safetensors")]
pub(crate) struct LogitsArgs {
    /// Model: a Hugging Face folder (config.json, model.safetensors), a .gguf file or org/name on the hub
    #[arg(short, long)]
    pub(crate) model: PathBuf,
    /// Folder of a PEFT LoRA adapter for the model, or org/name on the hub
    #[arg(long)]
    pub(crate) adapter: Option<PathBuf>,
    /// Token ids, comma-separated
    #[arg(long, value_delimiter = ',', required = true)]
    pub(crate) ids: Vec<u32>,
    #[command(flatten)]
    pub(crate) device: DeviceOption,
    #[command(flatten)]
    pub(crate) hub: HubOption,
    /// Output file, must not exist; its tensor `logits` has shape (seq, vocab) and dtype f32
    #[arg(long)]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  llm-infer bench --model runs/chat --dtype bf16 --prompt-tokens 512 --new-tokens 64"
)]
pub(crate) struct BenchArgs {
    /// Model: a Hugging Face folder (config.json, model.safetensors), a .gguf file or org/name on the hub
    #[arg(short, long, required_unless_present = "config")]
    pub(crate) model: Option<PathBuf>,
    /// A config.json instead of a model; the weights are random
    #[arg(long, conflicts_with = "model")]
    pub(crate) config: Option<PathBuf>,
    /// Weight dtype in memory
    #[arg(long, value_parser = Dtype::parser(), default_value = "mapped")]
    pub(crate) dtype: Dtype,
    #[command(flatten)]
    pub(crate) device: DeviceOption,
    #[command(flatten)]
    pub(crate) hub: HubOption,
    /// Length of the prompt in tokens, at least 1
    #[arg(long, default_value_t = 512)]
    pub(crate) prompt_tokens: usize,
    /// Number of tokens to generate, at least 2
    #[arg(long, default_value_t = 64)]
    pub(crate) new_tokens: usize,
    /// Number of rounds, at least 1; the result is their median
    #[arg(long, default_value_t = 3)]
    pub(crate) rounds: usize,
}
