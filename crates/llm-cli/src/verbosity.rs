//! The options `--quiet` and `--verbose` of both programs.

use clap::Args;

/// The heading in help of the options that every command has.
pub const GLOBAL_HEADING: &str = "Global options";

/// How much a program prints on standard error.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Verbosity {
    /// Print errors only
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = GLOBAL_HEADING)]
    pub quiet: bool,
    /// Print debug messages too, such as load times and tokens per second
    #[arg(short, long, global = true, help_heading = GLOBAL_HEADING)]
    pub verbose: bool,
}

impl Verbosity {
    /// The filter of log messages, in the syntax of `RUST_LOG`; `None` if neither option is given.
    pub(crate) fn filter(self) -> Option<&'static str> {
        match (self.quiet, self.verbose) {
            (true, _) => Some("error"),
            (_, true) => Some("debug"),
            _ => None,
        }
    }
}
