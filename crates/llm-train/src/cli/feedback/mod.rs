//! The commands `feedback`: answers of models, judged by people.

mod serve;

use clap::Subcommand;

use crate::Error;
use crate::run::Event;
use serve::Serve;

#[derive(Debug, Subcommand)]
pub(super) enum Feedback {
    /// Serve the page on which people rank the answers of a database
    Serve(Serve),
}

impl Feedback {
    /// Whether the text is the result of the command, and not a remark on it.
    pub(super) fn prints_result(&self) -> bool {
        match self {
            Self::Serve(_) => false,
        }
    }
}

/// Runs a command; returns the text to print.
pub(super) fn run(command: Feedback, _observer: &mut dyn FnMut(Event)) -> Result<String, Error> {
    match command {
        Feedback::Serve(args) => serve::serve(&args),
    }
}
