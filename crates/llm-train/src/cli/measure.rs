//! The options of the commands that measure and compare.

use std::path::PathBuf;

use clap::Args;
use llm_cli::{DeviceOption, HubOption, key_value};

use super::Common;
use crate::recipes::PretrainInputs;

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  llm-train scaling --tokenizer runs/tokenizer --data runs/shards --out runs/scaling --set seeds=2"
)]
pub(super) struct Scaling {
    #[command(flatten)]
    pub(super) inputs: PretrainInputs,
    /// Folder to write; must not exist
    #[arg(long, value_name = "DIR")]
    pub(super) out: PathBuf,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  llm-train compare-alignment --out runs/alignment --set seeds=1 --set 'kl_coefs=[0.0, 0.1]'"
)]
pub(super) struct CompareAlignment {
    /// Folder to write; must not exist
    #[arg(long, value_name = "DIR")]
    pub(super) out: PathBuf,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  llm-train compare-methods --out runs/methods")]
pub(super) struct CompareMethods {
    /// Folder to write; must not exist
    #[arg(long, value_name = "DIR")]
    pub(super) out: PathBuf,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  llm-train bench --steps 10 --set model.hidden_size=384")]
pub(super) struct Bench {
    /// Recipe of pre-training: a TOML file, or a name that `llm-train recipe` lists
    #[arg(long, default_value = "pretrain", value_name = "NAME|FILE")]
    pub(super) recipe: String,
    /// Override a key of the recipe, such as `model.hidden_size=384`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(super) set: Vec<(String, String)>,
    /// Number of timed steps, at least 1, after one warm-up step
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub(super) steps: usize,
    #[command(flatten)]
    pub(super) device: DeviceOption,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  llm-train bench-finetune --model models/smollm2 --data chats.jsonl --set batch_size=8 --set lora.r=16"
)]
pub(super) struct BenchFinetune {
    /// Folder of the model, or org/name on the Hugging Face hub
    #[arg(long, value_name = "DIR")]
    pub(super) model: PathBuf,
    /// Conversations, as for `finetune`
    #[arg(long, value_name = "FILE")]
    pub(super) data: PathBuf,
    /// Recipe of fine-tuning: a TOML file, or a name that `llm-train recipe` lists
    #[arg(long, default_value = "finetune", value_name = "NAME|FILE")]
    pub(super) recipe: String,
    /// Override a key of the recipe, such as `batch_size=8`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(super) set: Vec<(String, String)>,
    /// Number of steps, at least 2; the first is not timed
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub(super) steps: usize,
    #[command(flatten)]
    pub(super) device: DeviceOption,
    #[command(flatten)]
    pub(super) hub: HubOption,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  llm-train params llama-3-8b --batch-size 8 --context 2048,8192 --flops 1e13 --tokens 1e9"
)]
pub(super) struct Params {
    /// A config.json, a folder with one, org/name on the Hugging Face hub, or the name of a known model such as llama-3-8b (an unknown
    /// name lists them)
    #[arg(value_name = "CONFIG|DIR|PRESET")]
    pub(super) model: String,
    /// Sequences per batch, in inference and in training
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) batch_size: u64,
    /// Training sequence length, in tokens [default: 2048, or the model's context length if that is shorter]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) seq_len: Option<u64>,
    /// Context lengths for the KV-cache table, comma-separated [default: --seq-len and the model's context length]
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) context: Vec<u64>,
    /// Sustained speed of the machine in FLOP/s, such as 1e12: adds tokens per second to the report
    #[arg(long, value_name = "FLOPS")]
    pub(super) flops: Option<f64>,
    /// Number of training tokens, such as 1e9: adds the training time to the report
    #[arg(long, requires = "flops", value_name = "N")]
    pub(super) tokens: Option<f64>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) hub: HubOption,
}
