//! The command `feedback arena`: two models answer a person live, who votes before the models are named.

use std::path::PathBuf;

use clap::Args;
use llm_cli::HubOption;
use llm_engine::{Engine, EngineOptions, TextModel};
use llm_feedback::store::Store;
use llm_serve::feedback::{ArenaModel, FeedbackOptions, FeedbackServer};

use super::serve::Listen;
use crate::Error;

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  llm-train feedback arena --db votes.sqlite --model runs/chat --model runs/aligned\n\n\
    It prints where it listens. Votes are judgements in the database: see feedback report, and feedback export --to arena."
)]
pub(in crate::cli) struct Arena {
    /// Database for prompts, answers and votes; made if it does not exist
    #[arg(long, value_name = "FILE")]
    db: PathBuf,
    /// Model that answers, given twice: a folder, a GGUF file, or org/name on the Hugging Face hub
    #[arg(long, required = true, value_name = "PATH")]
    pub(super) model: Vec<PathBuf>,
    /// Temperature of sampling, 0 or more [default: of each model]
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// Sample from the smallest set of tokens with this probability, from 0 to 1 [default: of each model]
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Longest answer in tokens, at least 1
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: u32,
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    pub(super) hub: HubOption,
}

/// Runs the command.
pub(super) fn arena(args: &Arena) -> Result<String, Error> {
    let [first, second] = &args.model[..] else {
        let given = args.model.len();
        return Err(Error::BadRequest(format!(
            "--model is given {given} times; the arena has two models: give it twice"
        )));
    };
    let models = [args.start(first)?, args.start(second)?];
    let store = Store::open(&args.db)?;
    let what = format!("arena of {} and {}", models[0].name, models[1].name);
    args.listen.run(&store, FeedbackOptions::default(), &what, |store, address, options| {
        FeedbackServer::start_arena(store, models, address, options)
    })
}

impl Arena {
    /// Starts the engine of a model.
    fn start(&self, path: &PathBuf) -> Result<ArenaModel, Error> {
        let model = TextModel::open(path)?;
        let mut options = model.default_options();
        options.max_new_tokens = self.max_new_tokens as usize;
        options.sampling.temperature = self.temperature.unwrap_or(options.sampling.temperature);
        options.sampling.top_p = self.top_p.unwrap_or(options.sampling.top_p);
        options.sampling.validate(model.model.config().vocab_size)?;
        let engine = Engine::start(model, EngineOptions::default())?;
        if !engine.model_info().generates {
            return Err(Error::Unsupported(format!(
                "{}: has no head that predicts tokens, so it cannot answer",
                path.display()
            )));
        }
        Ok(ArenaModel { name: path.display().to_string(), engine, options })
    }
}
