//! The commands `feedback`: answers of models, judged by people.

mod arena;
mod collect;
mod files;
mod policy;
mod rank;
mod report;
mod serve;

use clap::Subcommand;
use llm_cli::Failure;
use llm_hub::Wanted;

use crate::Error;
use crate::run::Event;
use arena::Arena;
use collect::{Collect, Simulate};
use files::{Export, Import};
use rank::Rank;
use report::Report;
use serve::Serve;

#[derive(Debug, Subcommand)]
pub(super) enum Feedback {
    /// Sample answers of models to prompts, for people to judge
    Collect(Collect),
    /// Serve the page on which people rank the answers of a database
    Serve(Serve),
    /// Serve a page where two models answer live, blind, and people vote
    Arena(Arena),
    /// Judge answers in the terminal, blind
    Rank(Rank),
    /// Let simulated annotators judge
    Simulate(Simulate),
    /// Show how good the judgements are: agreement, bias, speed, and the strengths of checkpoints
    Report(Report),
    /// Add prompts with answers, or judgements of other programs, to a database
    Import(Import),
    /// Write the judgements as training data, or for other programs
    Export(Export),
}

impl Feedback {
    /// Replaces names on the hub by folders in its cache.
    pub(super) fn resolve_names(&mut self) -> Result<(), Failure> {
        match self {
            Self::Collect(args) => {
                let hub = args.hub;
                args.model.iter_mut().try_for_each(|path| hub.resolve(path, Wanted::Model))
            }
            Self::Arena(args) => {
                let hub = args.hub;
                args.model.iter_mut().try_for_each(|path| hub.resolve(path, Wanted::Model))
            }
            Self::Simulate(args) => super::hub::given(args.hub, &mut args.reward, Wanted::Model),
            Self::Serve(_) | Self::Rank(_) | Self::Report(_) | Self::Import(_) | Self::Export(_) => Ok(()),
        }
    }

    /// Whether the text is the result of the command, and not a remark on it.
    pub(super) fn prints_result(&self) -> bool {
        matches!(self, Self::Report(_))
    }
}

/// Runs a command; returns the text to print.
pub(super) fn run(command: Feedback, observer: &mut dyn FnMut(Event)) -> Result<String, Error> {
    match command {
        Feedback::Collect(args) => collect::run_collect(&args, observer),
        Feedback::Simulate(args) => collect::run_simulate(&args, observer),
        Feedback::Serve(args) => serve::serve(&args),
        Feedback::Arena(args) => arena::arena(&args),
        Feedback::Rank(args) => rank::run_rank(&args),
        Feedback::Report(args) => report::run_report(&args),
        Feedback::Import(args) => files::run_import(&args),
        Feedback::Export(args) => files::run_export(&args),
    }
}
