//! The command line of `llm-infer`.

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, Parser, Subcommand, ValueEnum};
use llm_cli::Failure;
use llm_kernels::BlockFormat;
use llm_model::{Batch, Model, WeightFormat, write_safetensors};
use llm_tokenizer::{ChatMessage, Tokenizer};

use crate::convert::{ConvertArgs, convert};
use crate::{Error, Sampling, TextModel, TextOptions, bench};

/// Generate text with a language model.
#[derive(Debug, Parser)]
#[command(
    name = "llm-infer",
    version,
    about,
    after_help = "Example:\n  llm-infer generate --model runs/chat --prompt \"What is a fox?\""
)]
pub struct Arguments {
    /// Number of compute threads, at least 1 [default: number of physical cores]
    #[arg(long, global = true)]
    threads: Option<usize>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Generate a reply to one prompt
    Generate(GenerateArgs),
    /// Chat with a model in the terminal
    Chat(ChatArgs),
    /// Write the logits of a sequence of token ids to a safetensors file
    Logits(LogitsArgs),
    /// Merge a LoRA adapter into its base model
    Merge(MergeArgs),
    /// Measure prefill and decode throughput; prints a JSON object
    Bench(BenchArgs),
    /// Convert a model to GGUF (llama.cpp) or safetensors (transformers)
    Convert(ConvertArgs),
}

/// Weight dtype in memory.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[allow(non_camel_case_types, reason = "ggml's names")]
#[value(rename_all = "snake_case")]
enum Dtype {
    /// The dtype of the file, memory-mapped: fastest start, no copy in memory
    #[value(alias = "stored")]
    Mapped,
    /// 32 bits per weight
    F32,
    /// 16 bits per weight: decodes about twice as fast as f32; about 3 significant digits
    Bf16,
    /// 8.5 bits per weight
    Q8_0,
    /// 4.5 bits per weight
    Q4_0,
    /// 4.5 bits per weight, more accurate than q4_0; q8_0 if the row length is not a multiple of 256
    Q4_K,
    /// 6.6 bits per weight; q8_0 if the row length is not a multiple of 256
    Q6_K,
}

impl Dtype {
    /// Converts the weights of a model to this dtype.
    fn convert(self, model: Model) -> Result<Model, Failure> {
        let format = match self {
            Self::Mapped => return Ok(model),
            Self::F32 => WeightFormat::F32,
            Self::Bf16 => WeightFormat::Bf16,
            Self::Q8_0 => WeightFormat::Quantized(BlockFormat::Q8_0),
            Self::Q4_0 => WeightFormat::Quantized(BlockFormat::Q4_0),
            Self::Q4_K => WeightFormat::Quantized(BlockFormat::Q4_K),
            Self::Q6_K => WeightFormat::Quantized(BlockFormat::Q6_K),
        };
        model.frozen_as(format).map_err(input)
    }
}

/// Options of `generate` and `chat`.
#[derive(Debug, Args)]
struct GenerationArgs {
    /// Model: a Hugging Face folder (config.json, model.safetensors, tokenizer.json) or a .gguf file
    #[arg(long)]
    model: PathBuf,
    /// Folder of a PEFT LoRA adapter for the model; its tokenizer is used if it has one
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Weight dtype in memory
    #[arg(long, value_enum, default_value_t = Dtype::Mapped)]
    dtype: Dtype,
    /// System message of the conversation
    #[arg(long)]
    system: Option<String>,
    /// Sampling temperature, 0 or more; 0: greedy decoding; higher values give more random text
    #[arg(long, default_value_t = 0.7)]
    temperature: f64,
    /// Sample from the k most likely tokens only; 0: all tokens
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Sample from the smallest set of tokens with at least this total probability, in (0, 1]; 1: all tokens
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// Random seed; the same seed gives the same text
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Stop string: generation ends before it (repeatable)
    #[arg(long)]
    stop: Vec<String>,
    /// Maximum number of tokens to generate
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
}

impl GenerationArgs {
    fn load(&self) -> Result<TextModel, Failure> {
        let start = Instant::now();
        let adapter_tokenizer = self.adapter.as_ref().filter(|dir| dir.join("tokenizer.json").exists());
        let opened = match adapter_tokenizer {
            Some(dir) => {
                Model::open(&self.model).map_err(Error::from).and_then(|model| TextModel::with_tokenizer(model, dir))
            }
            None => TextModel::open(&self.model),
        };
        let mut text_model = opened.map_err(input)?;
        text_model.model = with_adapter(self.dtype.convert(text_model.model)?, self.adapter.as_deref())?;
        let memory =
            crate::anonymous_memory().map_or_else(String::new, |bytes| format!(", {} MB of memory", bytes / 1_000_000));
        tracing::debug!("loaded in {:.2} s{memory}", start.elapsed().as_secs_f64());
        Ok(text_model)
    }

    fn options(&self) -> TextOptions {
        let sampling =
            Sampling { temperature: self.temperature, top_k: self.top_k, top_p: self.top_p, seed: self.seed };
        TextOptions { max_new_tokens: self.max_new_tokens, stop: self.stop.clone(), sampling }
    }

    fn system_message(&self) -> Vec<ChatMessage> {
        self.system.iter().map(|text| ChatMessage::new("system", text)).collect()
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  llm-infer generate --model runs/chat --prompt \"What is a fox?\" --temperature 0")]
struct GenerateArgs {
    #[command(flatten)]
    generation: GenerationArgs,
    /// Prompt; formatted with the chat template if the model has one
    #[arg(long)]
    prompt: String,
    /// Continue the prompt as plain text, without the chat template
    #[arg(long)]
    raw: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  llm-infer chat --model runs/chat --system \"Answer in one sentence.\"")]
struct ChatArgs {
    #[command(flatten)]
    generation: GenerationArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  llm-infer logits --model runs/base --ids 1,2,3 --out logits.safetensors")]
struct LogitsArgs {
    /// Model: a Hugging Face folder (config.json, model.safetensors) or a .gguf file
    #[arg(long)]
    model: PathBuf,
    /// Folder of a PEFT LoRA adapter for the model
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Token ids, comma-separated
    #[arg(long, value_delimiter = ',', required = true)]
    ids: Vec<u32>,
    /// Output file; its tensor `logits` has shape (seq, vocab) and dtype f32
    #[arg(long)]
    out: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  llm-infer merge --model runs/base --adapter runs/lora --out runs/merged")]
struct MergeArgs {
    /// Base model: a Hugging Face folder (config.json, model.safetensors)
    #[arg(long)]
    model: PathBuf,
    /// Folder of a PEFT LoRA adapter; its tokenizer is copied if it has one, else that of the base model
    #[arg(long)]
    adapter: PathBuf,
    /// Output folder; it must not exist
    #[arg(long)]
    out: PathBuf,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  llm-infer bench --model runs/chat --dtype bf16 --prompt-tokens 512 --new-tokens 64"
)]
struct BenchArgs {
    /// Model: a Hugging Face folder (config.json, model.safetensors) or a .gguf file
    #[arg(long, required_unless_present = "config")]
    model: Option<PathBuf>,
    /// A config.json instead of a model; the weights are random
    #[arg(long, conflicts_with = "model")]
    config: Option<PathBuf>,
    /// Weight dtype in memory
    #[arg(long, value_enum, default_value_t = Dtype::Mapped)]
    dtype: Dtype,
    /// Length of the prompt in tokens, at least 1
    #[arg(long, default_value_t = 512)]
    prompt_tokens: usize,
    /// Number of tokens to generate, at least 2
    #[arg(long, default_value_t = 64)]
    new_tokens: usize,
    /// Number of rounds, at least 1; the result is their median
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// Runs the selected command.
pub fn execute(arguments: Arguments) -> Result<(), Failure> {
    let threads = arguments.threads.unwrap_or_else(llm_kernels::default_threads);
    let result = llm_kernels::with_threads(threads, || match arguments.command {
        Command::Generate(args) => generate(&args),
        Command::Chat(args) => chat(&args),
        Command::Logits(args) => write_logits(&args),
        Command::Merge(args) => merge(&args),
        Command::Bench(args) => run_bench(&args),
        Command::Convert(args) => convert(&args),
    });
    result.map_err(|e| Failure::input(format!("--threads: {e}")))?
}

/// Classifies an error: tensor errors are internal, all others are errors of the input.
pub(crate) fn input(error: impl Into<Error>) -> Failure {
    match error.into() {
        Error::Candle(error) => Failure::internal(error.to_string()),
        error => Failure::input(error.to_string()),
    }
}

/// Loads and activates the adapter of a folder, if one is given.
fn with_adapter(mut model: Model, adapter: Option<&Path>) -> Result<Model, Failure> {
    if let Some(dir) = adapter {
        model.load_adapter(ADAPTER, dir).map_err(input)?;
        model.use_adapter(Some(ADAPTER)).map_err(input)?;
    }
    Ok(model)
}

const ADAPTER: &str = "default";

fn generate(args: &GenerateArgs) -> Result<(), Failure> {
    let options = args.generation.options();
    options.sampling.validate().map_err(input)?;
    let text_model = args.generation.load()?;
    let prompt = if args.raw || !text_model.tokenizer.has_chat_template() {
        if args.generation.system.is_some() {
            let reason = if args.raw { "with --raw" } else { "because the model has no chat template" };
            return Err(Failure::input(format!("--system cannot be used {reason}; put the text into --prompt")));
        }
        text_model.text_ids(&args.prompt).map_err(input)?
    } else {
        let mut messages = args.generation.system_message();
        messages.push(ChatMessage::new("user", &args.prompt));
        text_model.chat_ids(&messages).map_err(input)?
    };
    stream_reply(&text_model, &prompt, &options)?;
    Ok(())
}

fn chat(args: &ChatArgs) -> Result<(), Failure> {
    let options = args.generation.options();
    options.sampling.validate().map_err(input)?;
    let text_model = args.generation.load()?;
    if !text_model.tokenizer.has_chat_template() {
        let dir = args.generation.model.display();
        let message = format!("{dir}: this model has no chat template; use `llm-infer generate` to continue a text");
        return Err(Failure::input(message));
    }
    let mut messages = args.generation.system_message();
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        llm_cli::print("Type a message and press Enter; an empty line ends the chat.\n")?;
    }
    loop {
        if terminal {
            llm_cli::print("> ")?;
        }
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line);
        read.map_err(|e| Failure::input(format!("standard input: {e}")))?;
        if line.trim().is_empty() {
            return Ok(());
        }
        messages.push(ChatMessage::new("user", line.trim()));
        let prompt = text_model.chat_ids(&messages).map_err(input)?;
        let reply = stream_reply(&text_model, &prompt, &options)?;
        messages.push(ChatMessage::new("assistant", reply));
    }
}

/// Streams the reply to standard output and logs the throughput.
fn stream_reply(text_model: &TextModel, prompt: &[u32], options: &TextOptions) -> Result<String, Failure> {
    let start = Instant::now();
    let mut written = Ok(());
    let completion = text_model.complete(prompt, options, |piece| {
        if written.is_ok() && !piece.is_empty() {
            written = llm_cli::print(piece);
        }
    });
    let completion = completion.map_err(input)?;
    written?;
    llm_cli::print("\n")?;
    let rate = completion.tokens as f64 / start.elapsed().as_secs_f64();
    tracing::debug!("{} prompt tokens, {} new tokens, {rate:.0} tokens/s", prompt.len(), completion.tokens);
    Ok(completion.text)
}

fn write_logits(args: &LogitsArgs) -> Result<(), Failure> {
    let model = with_adapter(Model::open(&args.model).map_err(input)?, args.adapter.as_deref())?;
    let logits =
        (|| -> Result<_, Error> { Ok(model.forward(&Batch::new(std::slice::from_ref(&args.ids))?)?.squeeze(0)?) })();
    let tensors = BTreeMap::from([("logits".to_owned(), logits.map_err(input)?)]);
    reject_folder(&args.out)?;
    write_safetensors(&args.out, &tensors).map_err(input)
}

fn merge(args: &MergeArgs) -> Result<(), Failure> {
    if args.out.exists() {
        return Err(Failure::input(format!("{}: already exists; choose another --out", args.out.display())));
    }
    let model = with_adapter(Model::load(&args.model).map_err(input)?, Some(&args.adapter))?;
    let with_tokenizer = [&args.adapter, &args.model].into_iter().find(|dir| dir.join("tokenizer.json").exists());
    let tokenizer = with_tokenizer.map(|dir| Tokenizer::from_dir(dir)).transpose().map_err(input)?;
    let mut merged = model.merged().map_err(input)?;
    // The adapter was trained with the chat template of its tokenizer, so its end-of-turn token ends a reply.
    if let Some(format) = tokenizer.as_ref().and_then(|tokenizer| tokenizer.chat_format().ok()) {
        merged.set_eos_token_id(Some(format.end_of_turn));
    }
    merged.save(&args.out).map_err(input)?;
    tokenizer.map_or(Ok(()), |tokenizer| tokenizer.save(&args.out)).map_err(input)
}

fn run_bench(args: &BenchArgs) -> Result<(), Failure> {
    let model = match (&args.model, &args.config) {
        (Some(path), _) => Model::open(path).map_err(input)?,
        (None, Some(path)) => Model::random(path, 42).map_err(input)?,
        (None, None) => return Err(Failure::input("give --model or --config")),
    };
    let model = args.dtype.convert(model)?;
    let cost = bench(&model, args.prompt_tokens, args.new_tokens, args.rounds).map_err(input)?;
    let json = serde_json::to_string(&cost).map_err(|e| Failure::internal(e.to_string()))?;
    llm_cli::print(&format!("{json}\n"))
}

fn reject_folder(path: &Path) -> Result<(), Failure> {
    if path.is_dir() {
        return Err(Failure::input(format!("{}: is a folder; --out must be a file", path.display())));
    }
    Ok(())
}
