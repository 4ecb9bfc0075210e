//! The commands `feedback collect` and `feedback simulate`.

use std::path::PathBuf;

use clap::Args;
use llm_cli::HubOption;
use llm_data::{ReadOptions, read_prompts};
use llm_engine::{Sampling, TextModel};
use llm_feedback::Annotator;
use llm_feedback::store::Store;
use llm_synthetic::WorldConfig;
use serde_json::Value;

use super::policy::PolicyOptions;
use crate::Error;
use crate::feedback::{CollectOptions, Contestant, SimulateOptions, WorldUtilities, collect, simulate};
use crate::rewards::{Answer, Reward};
use crate::run::Event;

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  llm-train feedback collect --db votes.sqlite --model runs/chat --model runs/aligned --data prompts.jsonl \
                  --answers 4\n\nA call that was interrupted goes on where it ended; a second call adds nothing."
)]
pub(in crate::cli) struct Collect {
    /// File of the database; made if it does not exist
    #[arg(long, value_name = "FILE")]
    db: PathBuf,
    /// Model that answers: a folder, a GGUF file, or org/name on the Hugging Face hub; may be repeated
    #[arg(long, required = true, value_name = "PATH")]
    pub model: Vec<PathBuf>,
    /// Prompts: JSONL, JSON, CSV or Parquet with `prompt` or conversations
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// Answers to each prompt, 2 to 9; the models and temperatures give them in turn
    #[arg(long, default_value_t = 2, value_name = "K")]
    answers: usize,
    /// Temperature of sampling, 0 or more; may be repeated: each model answers at each temperature
    #[arg(long, default_value = "1", value_name = "T")]
    temperature: Vec<f64>,
    /// Sample from the smallest set of tokens with this probability, from 0 to 1
    #[arg(long, default_value_t = 1., value_name = "P")]
    top_p: f64,
    /// Longest answer in tokens
    #[arg(long, default_value_t = 256, value_name = "N")]
    max_new_tokens: usize,
    /// Use the first N prompts only
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Random seed; the same seed gives the same answers
    #[arg(long, default_value_t = 42, value_name = "N")]
    seed: u64,
    #[command(flatten)]
    pub hub: HubOption,
}

/// Samples answers.
pub(super) fn run_collect(args: &Collect, observer: &mut dyn FnMut(Event)) -> Result<String, Error> {
    let options = CollectOptions { answers: args.answers, max_new_tokens: args.max_new_tokens, seed: args.seed };
    let (prompts, warnings) = read_prompts(&args.data, &ReadOptions::default())?;
    for line in warnings.lines() {
        tracing::warn!("{}: {line}", args.data.display());
    }
    let sampling = |&temperature: &f64| Sampling { temperature, top_p: args.top_p, ..Sampling::default() };
    let samplings: Vec<Sampling> = args.temperature.iter().map(sampling).collect();
    let mut contestants = Vec::new();
    for path in &args.model {
        let model = TextModel::open(path)?;
        for sampling in &samplings {
            sampling.validate(model.model.config().vocab_size)?;
        }
        contestants.extend(Contestant::start(&path.display().to_string(), model, &samplings)?);
    }
    let limit = args.limit.unwrap_or(usize::MAX);
    let prompts: Vec<_> = prompts.into_iter().take(limit).map(|(prompt, _)| prompt).collect();
    let store = Store::open(&args.db)?;
    let source = args.data.display().to_string();
    let done = collect(&store, &prompts, &source, &contestants, &options, observer)?;
    let mut text = format!("{}: {} new items, {} were there already", args.db.display(), done.added, done.present);
    for (count, what) in [
        (done.duplicates, "repeated prompts"),
        (done.resampled, "answers sampled again because another one was equal"),
        (done.equal, "equal answers left out"),
        (done.without_choice, "prompts left out: fewer than two different answers"),
    ] {
        if count > 0 {
            text += &format!("; {count} {what}");
        }
    }
    Ok(text + "\n")
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  llm-train feedback simulate --db votes.sqlite --reward runs/reward --annotators 2 --overlap 2"
)]
pub(in crate::cli) struct Simulate {
    /// File of the database
    #[arg(long, value_name = "FILE")]
    db: PathBuf,
    /// Reward model whose score is the true utility: a folder, or org/name on the Hugging Face hub [default: the utility of the
    /// built-in world, whose questions the prompts must be]
    #[arg(long, value_name = "DIR")]
    pub reward: Option<PathBuf>,
    /// Number of annotators
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    annotators: u16,
    /// An answer is preferred with probability sigmoid(BETA * difference of utilities); 0: random
    #[arg(long, default_value_t = 3., value_name = "BETA")]
    beta: f64,
    /// Utility added per 100 characters
    #[arg(long, default_value_t = 0., value_name = "X", allow_negative_numbers = true)]
    length_bias: f64,
    /// Utility added to the answer that is shown first
    #[arg(long, default_value_t = 0., value_name = "X", allow_negative_numbers = true)]
    position_bias: f64,
    /// Random seed of the annotators
    #[arg(long, default_value_t = 42, value_name = "N")]
    seed: u64,
    #[command(flatten)]
    policy: PolicyOptions,
    #[command(flatten)]
    pub hub: HubOption,
}

/// Judges the items of a database.
pub(super) fn run_simulate(args: &Simulate, observer: &mut dyn FnMut(Event)) -> Result<String, Error> {
    let options = SimulateOptions {
        names: (1..=args.annotators).map(|number| format!("simulated-{number}")).collect(),
        annotator: Annotator {
            beta: args.beta,
            length_bias: args.length_bias,
            position_bias: args.position_bias,
            seed: args.seed,
        },
        policy: args.policy.policy()?,
    };
    options.annotator.validate()?;
    let store = Store::open_existing(&args.db)?;
    let done = match &args.reward {
        None => {
            let world = WorldUtilities::new(WorldConfig::default());
            simulate(&store, &options, |prompt, texts| world.of(prompt, texts), observer)?
        }
        Some(folder) => {
            let tokenizer = llm_tokenizer::Tokenizer::load(folder)?;
            let reward = Reward::open(&[], std::slice::from_ref(folder), &tokenizer)?;
            let score = |prompt: &[llm_data::ChatMessage], texts: &[&str]| {
                let query = tokenizer.encode_chat(prompt, true)?;
                let end = tokenizer.chat_format()?.end_of_turn;
                let mut responses = Vec::new();
                for text in texts {
                    responses.push([tokenizer.encode(text)?, vec![end]].concat());
                }
                let answers = texts.iter().zip(&responses).map(|(text, response)| Answer {
                    prompt,
                    row: &Value::Null,
                    query: &query,
                    response,
                    text,
                    finished: true,
                });
                reward.score(&answers.collect::<Vec<_>>())
            };
            simulate(&store, &options, score, observer)?
        }
    };
    Ok(format!("{}: {done} judgements. Next: llm-train feedback report --db {0}\n", args.db.display()))
}
