//! The commands of the program `llm-train`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use llm_cli::{Failure, Progress, key_value};
use llm_tokenizer::TrainConfig;
use serde::de::DeserializeOwned;

use crate::bench::bench;
use crate::params::{Report, Usage};
use crate::recipes::{
    DistillInputs, FinetuneInputs, PpoInputs, PrepareInputs, PretrainInputs, RewardInputs, distill, finetune,
    lifecycle, ppo, prepare, pretrain, reward, train_tokenizer,
};
use crate::run::{Event, RunOptions};
use crate::{Error, read_recipe};

/// Teaches language models, from plain text to an aligned and distilled model.
#[derive(Debug, Parser)]
#[command(name = "llm-train", version, about)]
pub struct Arguments {
    /// Threads to compute with; without it one for each physical core
    #[arg(long, global = true)]
    threads: Option<usize>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Live a whole model's life on the built-in world
    Lifecycle(Lifecycle),
    /// Make a tokenizer
    #[command(subcommand)]
    Tokenizer(Tokenizer),
    /// Turn text into token shards
    Prepare(Prepare),
    /// Learn the next token of plain text
    Pretrain(Pretrain),
    /// Learn to answer, from conversations
    Finetune(Finetune),
    /// Learn what people prefer, from ranked answers
    Reward(Reward),
    /// Align a model by PPO with a reward model
    Ppo(Ppo),
    /// Teach a small student what a teacher knows
    Distill(Distill),
    /// Time the pre-training step on random tokens; prints a JSON object
    Bench(Bench),
    /// Count a model's parameters, and what it takes to serve and to train it
    Params(Params),
}

#[derive(Debug, Subcommand)]
enum Tokenizer {
    /// Learn a byte-level BPE vocabulary from text
    Train(TokenizerTrain),
}

#[derive(Debug, Args)]
struct TokenizerTrain {
    /// Text or JSONL files (.gz too), or folders of them
    #[arg(long, required = true, num_args = 1..)]
    input: Vec<PathBuf>,
    /// The folder to write
    #[arg(long)]
    out: PathBuf,
    /// Entries in the vocabulary
    #[arg(long, default_value_t = 2048)]
    vocab_size: usize,
    /// How often a pair must occur to be merged
    #[arg(long, default_value_t = 2)]
    min_frequency: u64,
}

#[derive(Debug, Args)]
struct Prepare {
    /// The folder of the tokenizer
    #[arg(long)]
    tokenizer: PathBuf,
    /// Text or JSONL files (.gz too), or folders of them, to learn from
    #[arg(long, required = true, num_args = 1..)]
    train: Vec<PathBuf>,
    /// The same, to test on
    #[arg(long, num_args = 1..)]
    held_out: Vec<PathBuf>,
    /// Without --held-out: the share of the training text, at its end, to test on
    #[arg(long, default_value_t = 0.05)]
    held_out_share: f64,
    /// The folder to write
    #[arg(long)]
    out: PathBuf,
}

/// What every run is asked.
#[derive(Debug, Args)]
struct Common {
    /// A recipe: a TOML file, or the name of one that ships with the program
    #[arg(long)]
    recipe: Option<String>,
    /// Overrides a key of the recipe, such as `optimizer.learning_rate=0.001` (may be given several times)
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// Go on with the interrupted run in the folder
    #[arg(long)]
    resume: bool,
}

#[derive(Debug, Args)]
struct Lifecycle {
    /// The folder to write
    #[arg(long, default_value = "runs/lifecycle")]
    out: PathBuf,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Pretrain {
    /// The folder of the tokenizer
    #[arg(long)]
    tokenizer: PathBuf,
    /// The folder of the token shards (`llm-train prepare`)
    #[arg(long)]
    data: PathBuf,
    /// The folder to write
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Finetune {
    /// The folder of the model to start from
    #[arg(long)]
    model: PathBuf,
    /// Conversations in JSONL: messages, ShareGPT, question and answer, prompt and completion, instruction and output
    #[arg(long)]
    data: PathBuf,
    /// Conversations to test on; without it those of a twentieth of the prompts of --data, chosen by the recipe's seed
    #[arg(long)]
    held_out: Option<PathBuf>,
    /// The folder to write
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Reward {
    /// The folder of the fine-tuned model to start from
    #[arg(long)]
    model: PathBuf,
    /// Ranked answers in JSONL: chosen and rejected (TRL, HH), or answers and order
    #[arg(long)]
    data: PathBuf,
    /// Ranked answers to test on; without it a share of the prompts of --data
    #[arg(long)]
    held_out: Option<PathBuf>,
    /// The folder to write
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Ppo {
    /// The folder of the fine-tuned model
    #[arg(long)]
    model: PathBuf,
    /// The folder of the reward model
    #[arg(long)]
    reward: PathBuf,
    /// Prompts in JSONL
    #[arg(long)]
    data: PathBuf,
    /// The folder to write
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Distill {
    /// The folder of the teacher
    #[arg(long)]
    teacher: PathBuf,
    /// The folder of a student to go on with; without it a fresh one of the recipe's shape
    #[arg(long)]
    student: Option<PathBuf>,
    /// Conversations in JSONL
    #[arg(long)]
    data: PathBuf,
    /// Conversations to test on; without it those of a twentieth of the prompts of --data, chosen by the recipe's seed
    #[arg(long)]
    held_out: Option<PathBuf>,
    /// The folder of token shards to read first
    #[arg(long)]
    text: Option<PathBuf>,
    /// The folder of the teacher of that text, such as the pre-trained model; without it the text's own tokens teach
    #[arg(long, requires = "text")]
    text_teacher: Option<PathBuf>,
    /// The folder to write
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Bench {
    /// A recipe of pre-training: a TOML file, or the name of one that ships with the program
    #[arg(long, default_value = "pretrain")]
    recipe: String,
    /// Overrides a key of the recipe, such as `model.hidden_size=384` (may be given several times)
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// Steps to time, after one to warm up
    #[arg(long, default_value_t = 5)]
    steps: usize,
}

#[derive(Debug, Args)]
struct Params {
    /// A config.json, a folder with one, or the name of a known model such as llama-3-8b; another name lists them
    #[arg(value_name = "CONFIG|DIR|PRESET")]
    model: String,
    /// Rows that are served, or trained on, at a time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    batch_size: u64,
    /// Tokens of a row of training; without it 2048, or as many as the model is meant for if these are fewer
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    seq_len: Option<u64>,
    /// Tokens of a row that is served, several with commas; without it --seq-len and the longest text
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..))]
    context: Vec<u64>,
    /// Floating-point operations in a second that the machine sustains, such as 1e12
    #[arg(long)]
    flops: Option<f64>,
    /// Tokens to train on, such as 1e9
    #[arg(long, requires = "flops")]
    tokens: Option<f64>,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Common {
    fn recipe<R: DeserializeOwned>(&self, name: &str) -> Result<R, Error> {
        read_recipe(self.recipe.as_deref().unwrap_or(name), &self.set)
    }
}

/// Runs the command that the arguments name.
pub fn execute(arguments: Arguments) -> Result<(), Failure> {
    let threads = arguments.threads.unwrap_or_else(llm_kernels::default_threads);
    let done = llm_kernels::with_threads(threads, || show(arguments.command));
    done.map_err(|e| Failure::input(format!("--threads: {e}")))?
}

/// Performs a command and shows how far it is.
fn show(command: Command) -> Result<(), Failure> {
    let mut progress: Option<Progress> = None;
    let mut observer = |event: Event| match event {
        Event::Begin { stage, total, done, unit } => progress = Some(Progress::new(stage, total, unit, done)),
        Event::Progress { done, message } => {
            if let Some(progress) = &mut progress {
                progress.update(done, message);
            }
        }
        Event::End => {
            if let Some(progress) = progress.take() {
                progress.finish();
            }
        }
    };
    let table = perform(command, &mut observer).map_err(|error| match error {
        Error::Candle(_) | Error::Diverged { .. } => Failure::internal(error.to_string()),
        error => Failure::input(error.to_string()),
    })?;
    llm_cli::print(&table)
}

/// Performs a command; returns what is to be printed.
fn perform(command: Command, observer: &mut dyn FnMut(Event)) -> Result<String, Error> {
    match command {
        Command::Lifecycle(args) => {
            let options = RunOptions { resume: args.common.resume, observer };
            return lifecycle(&args.common.recipe("lifecycle")?, &args.out, options);
        }
        Command::Tokenizer(Tokenizer::Train(args)) => {
            let config = TrainConfig { vocab_size: args.vocab_size, min_frequency: args.min_frequency };
            train_tokenizer(&config, &args.input, &args.out, false)?;
        }
        Command::Prepare(args) => {
            let inputs = PrepareInputs {
                tokenizer: &args.tokenizer,
                train: &args.train,
                held_out: &args.held_out,
                held_out_share: args.held_out_share,
            };
            prepare(&inputs, &args.out, RunOptions { resume: false, observer })?;
        }
        Command::Pretrain(args) => {
            let inputs = PretrainInputs { tokenizer: &args.tokenizer, data: &args.data };
            let options = RunOptions { resume: args.common.resume, observer };
            pretrain(&args.common.recipe("pretrain")?, inputs, &args.out, options)?;
        }
        Command::Finetune(args) => {
            let inputs = FinetuneInputs { model: &args.model, data: &args.data, held_out: args.held_out.as_deref() };
            let options = RunOptions { resume: args.common.resume, observer };
            finetune(&args.common.recipe("finetune")?, inputs, &args.out, options)?;
        }
        Command::Reward(args) => {
            let inputs = RewardInputs { model: &args.model, data: &args.data, held_out: args.held_out.as_deref() };
            let options = RunOptions { resume: args.common.resume, observer };
            reward(&args.common.recipe("reward")?, inputs, &args.out, options)?;
        }
        Command::Ppo(args) => {
            let inputs = PpoInputs { model: &args.model, reward: &args.reward, data: &args.data };
            let options = RunOptions { resume: args.common.resume, observer };
            ppo(&args.common.recipe("ppo")?, inputs, &args.out, options)?;
        }
        Command::Distill(args) => {
            let inputs = DistillInputs {
                teacher: &args.teacher,
                text_teacher: args.text_teacher.as_deref(),
                student: args.student.as_deref(),
                data: &args.data,
                held_out: args.held_out.as_deref(),
                text: args.text.as_deref(),
            };
            let options = RunOptions { resume: args.common.resume, observer };
            distill(&args.common.recipe("distill")?, inputs, &args.out, options)?;
        }
        Command::Bench(args) => {
            let cost = bench(&read_recipe(&args.recipe, &args.set)?, args.steps)?;
            let json = serde_json::to_string(&cost).map_err(|e| Error::Input(format!("bench: {e}")))?;
            return Ok(format!("{json}\n"));
        }
        Command::Params(args) => {
            let usage = Usage {
                batch_size: args.batch_size,
                seq_len: args.seq_len,
                contexts: args.context,
                flops: args.flops,
                tokens: args.tokens,
            };
            let report = Report::of(&args.model, &usage)?;
            return if args.json { report.json() } else { Ok(report.to_string()) };
        }
    }
    Ok(String::new())
}
