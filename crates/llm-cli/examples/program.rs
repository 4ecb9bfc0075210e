//! A small program with the habits of ours: one-line errors, `--quiet`, a progress bar, exit codes, completions.
//!
//! ```sh
//! cargo run -p llm-cli --example program -- count 100000
//! ```

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use llm_cli::{Failure, Progress, ShellCommand, Verbosity};

/// Counts.
#[derive(Debug, Parser)]
#[command(name = "program", version)]
struct Arguments {
    #[command(flatten)]
    verbosity: Verbosity,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Count to a number
    Count {
        /// The number, at least 1
        n: u64,
    },
    #[command(flatten)]
    Shell(ShellCommand),
}

fn main() -> ExitCode {
    let arguments = llm_cli::parse_arguments::<Arguments>();
    llm_cli::init_logging(arguments.verbosity);
    llm_cli::run(|| execute(arguments.command))
}

fn execute(command: Command) -> Result<(), Failure> {
    let n = match command {
        Command::Shell(command) => return command.run::<Arguments>(),
        Command::Count { n: 0 } => return Err(Failure::input("N is 0; it must be at least 1")), // exit code 2
        Command::Count { n } => n,
    };
    let mut progress = Progress::new("count", n, "numbers", 0);
    for i in 1..=n {
        progress.update(i, "");
    }
    progress.finish();
    llm_cli::print(&format!("{n}\n"))
}

#[test]
fn runs() {
    assert!(execute(Command::Count { n: 3 }).is_ok() && execute(Command::Count { n: 0 }).is_err());
}
