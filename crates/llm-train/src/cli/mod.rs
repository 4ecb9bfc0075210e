//! The commands of the program `llm-train`.

mod align;
mod clean;
mod compare;
mod distill;
mod export;
mod feedback;
mod hub;
mod inputs;
mod measure;
mod preview;
mod run;
mod tokenizer;

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use llm_cli::{DeviceOption, Failure, GLOBAL_HEADING, HubOption, Progress, ShellCommand, Verbosity, key_value};

use crate::depth::TOKENS_PER_PARAMETER;
use crate::recipes::{
    BestOfNInputs, DpoInputs, FinetuneInputs, GrpoInputs, KtoInputs, PpoInputs, PrepareInputs, PretrainInputs,
    RewardInputs,
};
use crate::run::{Event, recorded_recipe};
use crate::{Error, Recipe, read_recipe};
use align::ExpertIteration;
use clean::Clean;
use compare::Compare;
use distill::{BenchDecode, Distill, ReportDistill, TeacherLogits};
use export::ExportShards;
use feedback::Feedback;
use measure::{Bench, BenchFinetune, CompareAlignment, CompareMethods, Params, Scaling};
use preview::{Preview, Rows};
use run::run;
use tokenizer::Tokenizer;

/// Train language models: tokenizer, pre-training, fine-tuning, reward model, PPO, distillation
#[derive(Debug, Parser)]
#[command(
    name = "llm-train",
    version,
    about,
    after_help = "Example:\n  llm-train lifecycle --out runs/lifecycle\n\nThe recipes and their keys: llm-train recipe"
)]
pub struct Arguments {
    /// Number of compute threads, at least 1 [default: one per physical core]
    #[arg(long, global = true, value_name = "N", display_order = 100, help_heading = GLOBAL_HEADING)]
    threads: Option<usize>,
    /// How much to print on standard error.
    #[command(flatten)]
    pub verbosity: Verbosity,
    #[command(subcommand)]
    command: Option<AnyCommand>,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one, parsed at the start")]
enum AnyCommand {
    #[command(flatten)]
    Training(Command),
    #[command(flatten)]
    Shell(ShellCommand),
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the whole pipeline on the built-in synthetic dataset
    Lifecycle(Lifecycle),
    /// Train a tokenizer
    #[command(subcommand)]
    Tokenizer(Tokenizer),
    /// Clean a corpus: quality, languages, duplicates, evaluation sets, addresses
    Clean(Clean),
    /// Tokenize text into shards for pre-training
    Prepare(Prepare),
    /// Write token shards as files of llm.c or Megatron-LM
    ExportShards(ExportShards),
    /// Pre-train a language model on token shards
    Pretrain(Pretrain),
    /// Train a series of models at equal compute: scaling law, plot, and whether a larger model is better
    Scaling(Scaling),
    /// Fine-tune a model on conversations, with all weights or a LoRA adapter
    #[command(after_help = "Example:\n  llm-train finetune --model runs/base --data chats.jsonl --out runs/chat")]
    Finetune(Stage<FinetuneInputs>),
    /// Show data as the model will see it: the trained tokens, ids, lengths and what is left out; trains nothing
    Preview(Preview),
    /// Let people rank answers of models: the database, its judgements and their quality
    #[command(subcommand)]
    Feedback(Feedback),
    /// Train a reward model on ranked answers
    #[command(after_help = "Example:\n  llm-train reward --model runs/chat --data rankings.jsonl --out runs/reward")]
    Reward(Stage<RewardInputs>),
    /// Align a model with a reward model by PPO
    #[command(
        after_help = "Example:\n  llm-train ppo --model runs/chat --reward runs/reward --data prompts.jsonl --out runs/aligned"
    )]
    Ppo(Stage<PpoInputs>),
    /// Train a model on rewards of its own replies by GRPO, Dr. GRPO, DAPO or RLOO
    #[command(
        after_help = "Examples:\n  llm-train grpo --model runs/chat --reward runs/reward --data prompts.jsonl --out runs/aligned\n  \
                  llm-train grpo --recipe rloo --model runs/chat --reward runs/reward --data prompts.jsonl --out runs/aligned\n  \
                  llm-train grpo --model MODEL --data gsm8k.jsonl --out RUN --set 'rewards=[{kind=\"exact_answer\"}]'"
    )]
    Grpo(Stage<GrpoInputs>),
    /// Align a model with pairs of answers, by DPO, IPO, ORPO and other losses
    #[command(
        after_help = "Examples:\n  llm-train dpo --model runs/chat --data rankings.jsonl --out runs/aligned\n  llm-train dpo --model \
                  runs/chat --data rankings.jsonl --out runs/simpo --set loss=simpo --set beta=2"
    )]
    Dpo(Stage<DpoInputs>),
    /// Align a model with good and bad answers by KTO
    #[command(after_help = "Example:\n  llm-train kto --model runs/chat --data labelled.jsonl --out runs/aligned")]
    Kto(Stage<KtoInputs>),
    /// Sample n replies to each prompt and keep the one with the highest reward
    #[command(
        after_help = "Example:\n  llm-train best-of-n --model runs/chat --reward runs/reward --data prompts.jsonl --out runs/best --set n=16"
    )]
    BestOfN(Stage<BestOfNInputs>),
    /// Improve a model by rounds of best-of-n and fine-tuning on the best replies
    ExpertIteration(ExpertIteration),
    /// Distil a model into a smaller one
    Distill(Distill),
    /// Measure the win rate of one model against another, by a reward or by the votes of people
    Compare(Compare),
    /// Measure the models of a finished distillation again and print its table
    DistillReport(ReportDistill),
    /// Store the most likely tokens of a teacher, so that it runs once for many students
    #[command(subcommand)]
    TeacherLogits(TeacherLogits),
    /// Compare PPO at several KL coefficients, GRPO, RLOO, DPO and best-of-n on the built-in dataset: true utility against KL
    CompareAlignment(CompareAlignment),
    /// Compare pre-training, prompting, domain and instruction fine-tuning, with and without mixing, on the built-in dataset
    CompareMethods(CompareMethods),
    /// Continue an interrupted run, or extend a finished one
    Resume(Resume),
    /// Print a built-in recipe: a TOML file with every key, to copy and change
    Recipe(PrintRecipe),
    /// Measure the speed of a pre-training step on random tokens; prints JSON
    Bench(Bench),
    /// Measure the speed of fine-tuning a model on conversations in their order; prints JSON
    BenchFinetune(BenchFinetune),
    /// Measure the decoding of a model and its memory; prints JSON
    BenchDecode(BenchDecode),
    /// Count parameters, memory and floating-point operations of a model
    Params(Params),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  llm-train prepare --tokenizer runs/tokenizer --train corpus/ --out runs/shards")]
struct Prepare {
    #[command(flatten)]
    inputs: PrepareInputs,
    /// Folder to write; must not exist
    #[arg(long, value_name = "DIR", display_order = 2)]
    out: PathBuf,
    #[command(flatten)]
    hub: HubOption,
}

/// Options of every run.
#[derive(Debug, Args)]
struct Common {
    /// Recipe: a TOML file, or a name that `llm-train recipe` lists [default: the command's own; with --resume the run's]
    #[arg(long, value_name = "NAME|FILE")]
    recipe: Option<String>,
    /// Override a key of the recipe, such as `optimizer.learning_rate=0.001`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// Continue the interrupted run in --out
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    device: DeviceOption,
    #[command(flatten)]
    hub: HubOption,
}

/// Options of a stage that reads rows of data.
#[derive(Debug, Args)]
struct Stage<I: Args> {
    #[command(flatten)]
    inputs: I,
    /// Folder to write; must not exist
    #[arg(long, value_name = "DIR", display_order = 2)]
    out: PathBuf,
    #[command(flatten)]
    rows: Rows,
    #[command(flatten)]
    common: Common,
}

impl<I: Args> Stage<I> {
    /// The recipe of the run.
    fn recipe<R: Recipe>(&self) -> Result<R, Error> {
        self.common.recipe_with(&self.rows, &self.out)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  llm-train lifecycle --out runs/lifecycle --set pretrain.steps=3000")]
struct Lifecycle {
    /// Folder to write
    #[arg(long, default_value = "runs/lifecycle", value_name = "DIR")]
    out: PathBuf,
    /// Repeat the pipeline with N seeds (1 to 100) in OUT/seed-N and report over all of them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100))]
    seeds: Option<u64>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  llm-train pretrain --tokenizer runs/tokenizer --data runs/shards --out runs/base --set steps=3000\n  \
                  llm-train pretrain --tokenizer runs/tokenizer --data runs/shards --out runs/base --depth 3"
)]
struct Pretrain {
    #[command(flatten)]
    inputs: PretrainInputs,
    /// Folder to write; must not exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Number of layers, 1 to 64: sets width, heads, batch, steps and learning rate; --set overrides them
    #[arg(long, value_name = "N", conflicts_with_all = ["resume", "model"])]
    depth: Option<usize>,
    /// With --depth: training tokens for each parameter that multiplies a token
    #[arg(long, value_name = "X", requires = "depth", default_value_t = TOKENS_PER_PARAMETER)]
    tokens_per_parameter: f64,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  llm-train resume runs/base\n  llm-train resume runs/base --set steps=6000")]
struct Resume {
    /// Folder of the run
    #[arg(value_name = "DIR")]
    run: PathBuf,
    /// Change a key of the run's recipe: `steps`, `epochs`, `updates`, `eval_every`, `eval_batches`, `save_every` or a
    /// learning rate; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// New location of an input of the run, such as `data=chats.jsonl`; may be repeated [default: the recorded path]
    #[arg(long, value_name = "NAME=PATH", value_parser = input_path)]
    input: Vec<(String, String)>,
    #[command(flatten)]
    device: DeviceOption,
    #[command(flatten)]
    hub: HubOption,
}

/// Parses `NAME=PATH`. The old name `held_out` means `validation`.
fn input_path(text: &str) -> Result<(String, String), String> {
    let (name, path) = key_value(text)?;
    Ok((if name == "held_out" { "validation".to_owned() } else { name }, path))
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  llm-train recipe finetune > my-recipe.toml")]
struct PrintRecipe {
    /// Name of the recipe [default: list the names]
    name: Option<String>,
}

impl Common {
    /// The recipe of the run. With --resume and without --recipe it is the recorded one.
    fn recipe<R: Recipe>(&self, out: &Path) -> Result<R, Error> {
        self.recipe_with(&Rows { strict: false }, out)
    }

    /// The recipe of a run that reads rows.
    fn recipe_with<R: Recipe>(&self, rows: &Rows, out: &Path) -> Result<R, Error> {
        let mut set = self.set.clone();
        set.extend(rows.set());
        match &self.recipe {
            None if self.resume => recorded_recipe(out, &set),
            recipe => read_recipe(recipe.as_deref().unwrap_or(R::STAGE), &set),
        }
    }
}

/// What the program prints if no command is given.
const START: &str = "\
llm-train trains language models: tokenizer, pre-training, fine-tuning, reward model, PPO, distillation.

Start here:
  llm-train lifecycle                          the whole pipeline on built-in data, 8 to 30 minutes
  llm-train finetune --model MODEL --data chats.jsonl --out runs/chat
  llm-train params llama-3-8b                  parameters, memory and time of a model, without creating it

All commands: llm-train --help
";

/// Runs the command.
pub fn execute(arguments: Arguments) -> Result<(), Failure> {
    let command = match arguments.command {
        None => return llm_cli::print(START),
        Some(AnyCommand::Shell(command)) => return command.run::<Arguments>(),
        Some(AnyCommand::Training(command)) => command,
    };
    let threads = arguments.threads.unwrap_or_else(llm_kernels::default_threads);
    let done = llm_kernels::with_threads(threads, || run_with_progress(command));
    done.map_err(|e| Failure::input(format!("--threads: {e}")))?
}

/// Runs a command and shows its progress.
fn run_with_progress(mut command: Command) -> Result<(), Failure> {
    command.resolve_names()?;
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
    let device = command.device()?;
    let prints_result = match &command {
        Command::Feedback(command) => command.prints_result(),
        Command::Clean(_)
        | Command::Compare(_)
        | Command::Recipe(_)
        | Command::Bench(_)
        | Command::BenchFinetune(_)
        | Command::BenchDecode(_)
        | Command::DistillReport(_)
        | Command::Params(_) => true,
        _ => false,
    };
    let result = run(command, device, &mut observer);
    if let Some(progress) = progress {
        progress.finish();
    }
    let text = result.map_err(|error| match error {
        Error::Interrupted { .. } => Failure::interrupted(error.to_string()),
        error => Failure::of(&error, error.is_callers_fault()),
    })?;
    if prints_result { llm_cli::print(&text) } else { llm_cli::print_status(&text) }
}
