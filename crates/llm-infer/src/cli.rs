//! The commands of the program `llm-infer`.

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, Parser, Subcommand, ValueEnum};
use llm_cli::Failure;
use llm_kernels::BlockFormat;
use llm_model::{Batch, Model, WeightFormat, write_safetensors};
use llm_tokenizer::{ChatMessage, Tokenizer};

use crate::convert::{Convert, convert};
use crate::{Error, Sampling, TextModel, TextOptions, bench};

/// Turns a checkpoint and a prompt into text.
#[derive(Debug, Parser)]
#[command(name = "llm-infer", version, about)]
pub struct Arguments {
    /// Threads to compute with; without it one for each physical core
    #[arg(long, global = true)]
    threads: Option<usize>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer one prompt
    Generate(Generate),
    /// Talk with the model, line by line
    Chat(Chat),
    /// Write the logits of some token ids to a safetensors file
    Logits(Logits),
    /// Write a model whose weights are those that an adapter makes of it
    Merge(Merge),
    /// Time the reading of a prompt and each further token; prints a JSON object
    Bench(Bench),
    /// Write a model as another kind of file: GGUF for llama.cpp, safetensors for transformers
    Convert(Convert),
}

/// What the matrices of a model are held in.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[allow(non_camel_case_types, reason = "ggml's names")]
#[value(rename_all = "snake_case")]
enum Dtype {
    /// As the file has them, read where they lie in it: the quickest start, no copy in memory
    Stored,
    /// 4 bytes for each number
    F32,
    /// 2 bytes: decoding is about twice as fast; the rounding shows in the third digit
    Bf16,
    /// 8.5 bits
    Q8_0,
    /// 4.5 bits
    Q4_0,
    /// 4.5 bits, with finer scales; for rows of a multiple of 256 numbers
    Q4_K,
    /// 6.6 bits; for rows of a multiple of 256 numbers
    Q6_K,
}

impl Dtype {
    fn hold(self, model: Model) -> Result<Model, Failure> {
        let format = match self {
            Self::Stored => return Ok(model),
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

#[derive(Debug, Args)]
struct Speech {
    /// A Hugging Face folder (config.json, model.safetensors, tokenizer.json) or a .gguf file
    #[arg(long)]
    model: PathBuf,
    /// A folder with an adapter for it in PEFT's files; its tokenizer is used if it has one
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// What the matrices are held in
    #[arg(long, value_enum, default_value_t = Dtype::Stored)]
    dtype: Dtype,
    /// A system message: a role to play, rules to keep
    #[arg(long)]
    system: Option<String>,
    /// 0 takes the most likely token each time; above 1 the unlikely ones come up more often
    #[arg(long, default_value_t = 0.7)]
    temperature: f64,
    /// Choose among the k most likely tokens only (0: all)
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Choose among the likeliest tokens that together reach this probability
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// The same seed gives the same text
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// End before this text (may be given several times)
    #[arg(long)]
    stop: Vec<String>,
    /// At most so many tokens
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
}

impl Speech {
    fn load(&self) -> Result<TextModel, Failure> {
        let start = Instant::now();
        let own = self.adapter.as_ref().filter(|dir| dir.join("tokenizer.json").exists());
        let opened = match own {
            Some(dir) => {
                Model::open(&self.model).map_err(Error::from).and_then(|model| TextModel::with_tokenizer(model, dir))
            }
            None => TextModel::open(&self.model),
        };
        let mut text_model = opened.map_err(input)?;
        text_model.model = adapted(self.dtype.hold(text_model.model)?, self.adapter.as_deref())?;
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
struct Generate {
    #[command(flatten)]
    speech: Speech,
    /// The prompt
    #[arg(long)]
    prompt: String,
    /// Continue the prompt as a text, even where the model has a chat template
    #[arg(long)]
    raw: bool,
}

#[derive(Debug, Args)]
struct Chat {
    #[command(flatten)]
    speech: Speech,
}

#[derive(Debug, Args)]
struct Logits {
    /// A Hugging Face folder (config.json, model.safetensors) or a .gguf file
    #[arg(long)]
    model: PathBuf,
    /// A folder with an adapter for it in PEFT's files
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Token ids, separated by commas
    #[arg(long, value_delimiter = ',', required = true)]
    ids: Vec<u32>,
    /// The file to write; its tensor `logits` is (seq, vocab), f32
    #[arg(long)]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct Merge {
    /// A Hugging Face folder: config.json, model.safetensors
    #[arg(long)]
    model: PathBuf,
    /// A folder with an adapter for it in PEFT's files; its tokenizer is taken along, or else the model's
    #[arg(long)]
    adapter: PathBuf,
    /// The folder to write
    #[arg(long)]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct Bench {
    /// A Hugging Face folder (config.json, model.safetensors) or a .gguf file
    #[arg(long, required_unless_present = "config")]
    model: Option<PathBuf>,
    /// Instead of a model: a config.json, whose model is filled with random weights
    #[arg(long, conflicts_with = "model")]
    config: Option<PathBuf>,
    /// What the matrices are held in
    #[arg(long, value_enum, default_value_t = Dtype::Stored)]
    dtype: Dtype,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 512)]
    prompt_tokens: usize,
    /// Tokens behind it
    #[arg(long, default_value_t = 64)]
    new_tokens: usize,
    /// How often
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// Runs the command that the arguments name.
pub fn execute(arguments: Arguments) -> Result<(), Failure> {
    let threads = arguments.threads.unwrap_or_else(llm_kernels::default_threads);
    let done = llm_kernels::with_threads(threads, || match arguments.command {
        Command::Generate(generate) => answer(&generate),
        Command::Chat(chat) => talk(&chat),
        Command::Logits(logits) => write_logits(&logits),
        Command::Merge(args) => merge(&args),
        Command::Bench(args) => time(&args),
        Command::Convert(args) => convert(&args),
    });
    done.map_err(|e| Failure::input(format!("--threads: {e}")))?
}

/// Whatever fails here fails on what the person gave: a folder, a prompt, an option.
pub(crate) fn input(error: impl Into<Error>) -> Failure {
    match error.into() {
        Error::Candle(error) => Failure::internal(error.to_string()),
        error => Failure::input(error.to_string()),
    }
}

/// The model with the adapter of a folder, if one is asked for.
fn adapted(mut model: Model, adapter: Option<&Path>) -> Result<Model, Failure> {
    if let Some(dir) = adapter {
        model.load_adapter(ADAPTER, dir).map_err(input)?;
        model.use_adapter(Some(ADAPTER)).map_err(input)?;
    }
    Ok(model)
}

const ADAPTER: &str = "default";

fn answer(args: &Generate) -> Result<(), Failure> {
    let options = args.speech.options();
    options.sampling.validate().map_err(input)?;
    let text_model = args.speech.load()?;
    let prompt = if args.raw || !text_model.tokenizer.has_chat_template() {
        if args.speech.system.is_some() {
            let reason = if args.raw { "with --raw" } else { "as the model has no chat template" };
            return Err(Failure::input(format!("--system cannot be used {reason}; put the text into --prompt")));
        }
        text_model.text_ids(&args.prompt).map_err(input)?
    } else {
        let mut messages = args.speech.system_message();
        messages.push(ChatMessage::new("user", &args.prompt));
        text_model.chat_ids(&messages).map_err(input)?
    };
    speak(&text_model, &prompt, &options)?;
    Ok(())
}

fn talk(args: &Chat) -> Result<(), Failure> {
    let options = args.speech.options();
    options.sampling.validate().map_err(input)?;
    let text_model = args.speech.load()?;
    if !text_model.tokenizer.has_chat_template() {
        let dir = args.speech.model.display();
        let message = format!("{dir}: this model has no chat template; continue a text with `llm-infer generate`");
        return Err(Failure::input(message));
    }
    let mut messages = args.speech.system_message();
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        llm_cli::print("Write a line and press enter; an empty line ends the talk.\n")?;
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
        let reply = speak(&text_model, &prompt, &options)?;
        messages.push(ChatMessage::new("assistant", reply));
    }
}

/// Streams the reply to standard output and logs its rate.
fn speak(text_model: &TextModel, prompt: &[u32], options: &TextOptions) -> Result<String, Failure> {
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
    tracing::debug!("{} prompt tokens, {} new ones, {rate:.0} tokens/s", prompt.len(), completion.tokens);
    Ok(completion.text)
}

fn write_logits(args: &Logits) -> Result<(), Failure> {
    let model = adapted(Model::open(&args.model).map_err(input)?, args.adapter.as_deref())?;
    let logits =
        (|| -> Result<_, Error> { Ok(model.forward(&Batch::new(std::slice::from_ref(&args.ids))?)?.squeeze(0)?) })();
    let tensors = BTreeMap::from([("logits".to_owned(), logits.map_err(input)?)]);
    refuse_folder(&args.out)?;
    write_safetensors(&args.out, &tensors).map_err(input)
}

fn merge(args: &Merge) -> Result<(), Failure> {
    if args.out.exists() {
        return Err(Failure::input(format!("{}: exists already; choose another --out", args.out.display())));
    }
    let model = adapted(Model::load(&args.model).map_err(input)?, Some(&args.adapter))?;
    let with_tokenizer = [&args.adapter, &args.model].into_iter().find(|dir| dir.join("tokenizer.json").exists());
    let tokenizer = with_tokenizer.map(|dir| Tokenizer::from_dir(dir)).transpose().map_err(input)?;
    let mut merged = model.merged().map_err(input)?;
    // The adapter was taught the chat format of its tokenizer, which may end turns with another token than the base's texts.
    if let Some(format) = tokenizer.as_ref().and_then(|tokenizer| tokenizer.chat_format().ok()) {
        merged.set_eos_token_id(Some(format.end_of_turn));
    }
    merged.save(&args.out).map_err(input)?;
    tokenizer.map_or(Ok(()), |tokenizer| tokenizer.save(&args.out)).map_err(input)
}

fn time(args: &Bench) -> Result<(), Failure> {
    let model = match (&args.model, &args.config) {
        (Some(path), _) => Model::open(path).map_err(input)?,
        (None, Some(path)) => Model::random(path, 42).map_err(input)?,
        (None, None) => return Err(Failure::input("give --model or --config")),
    };
    let model = args.dtype.hold(model)?;
    let cost = bench(&model, args.prompt_tokens, args.new_tokens, args.rounds).map_err(input)?;
    let json = serde_json::to_string(&cost).map_err(|e| Failure::internal(e.to_string()))?;
    llm_cli::print(&format!("{json}\n"))
}

fn refuse_folder(path: &Path) -> Result<(), Failure> {
    if path.is_dir() {
        return Err(Failure::input(format!("{}: is a folder; name the file to write", path.display())));
    }
    Ok(())
}
