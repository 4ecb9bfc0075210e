//! The commands of the program `llm-train`.

mod perform;

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use llm_cli::{Failure, Progress, key_value};

use crate::run::{Event, recorded_recipe};
use crate::{Error, Recipe, read_recipe};
use perform::perform;

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
    /// Go on with an interrupted run, or make a finished one longer (--set steps=..., epochs=..., updates=...)
    Resume(Resume),
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
    /// A recipe: a TOML file, or the name of one that ships with the program; without it the command's own, or the run's with
    /// --resume
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
    /// Live so many lives, each with another world and other weights, in OUT/seed-N, and report over all of them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100))]
    seeds: Option<u64>,
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
    /// The folder of token shards to rehearse beside the conversations, so that the model keeps what it knew from text
    #[arg(long)]
    text: Option<PathBuf>,
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
struct Resume {
    /// The folder of the run
    run: PathBuf,
    /// Changes a key of the run's recipe: `steps`, `epochs`, `updates`, `eval_every`, `eval_batches`, `save_every` or a learning
    /// rate (may be given several times)
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// Where an input of the run is now, such as `data=lessons.jsonl`; without it where it was (may be given several times)
    #[arg(long, value_name = "NAME=PATH", value_parser = key_value)]
    input: Vec<(String, String)>,
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
    /// The recipe that is asked for; a run that is resumed has its own if no other is named.
    fn recipe<R: Recipe>(&self, out: &Path) -> Result<R, Error> {
        match &self.recipe {
            None if self.resume => recorded_recipe(out, &self.set),
            recipe => read_recipe(recipe.as_deref().unwrap_or(R::STAGE), &self.set),
        }
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
    let result = perform(command, &mut observer);
    if let Some(progress) = progress {
        progress.finish();
    }
    let text = result.map_err(|error| match error {
        Error::Interrupted { .. } => Failure::interrupted(error.to_string()),
        error if error.is_callers_fault() => Failure::input(error.to_string()),
        error => Failure::internal(error.to_string()),
    })?;
    llm_cli::print(&text)
}
