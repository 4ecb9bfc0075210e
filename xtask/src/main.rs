//! What a developer runs: `cargo xtask ci` checks everything that a commit must keep, `cargo xtask bench` compares with
//! other programs.

// The allocator of the programs, so that kernels are timed as they run in them.
use llm_cli as _;

mod bench;
mod kernels;

use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};

/// What a developer of this workspace runs
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check the format, the lints, the tests and the documentation, and stop at the first that fails
    Ci {
        /// Leave the tests out (they have just run)
        #[arg(long)]
        no_test: bool,
    },
    /// Measure ours and other programs in turn
    #[command(subcommand)]
    Bench(bench::Bench),
}

/// A name, the arguments of cargo, and environment variables with their values.
type Step = (&'static str, &'static [&'static str], &'static [(&'static str, &'static str)]);

const FORMAT: Step = ("format", &["fmt", "--all", "--check"], &[]);
const LINTS: Step = ("lints", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[]);
const TESTS: Step = ("tests", &["test", "--workspace"], &[]);
const DOCS: Step = ("documentation", &["doc", "--workspace", "--no-deps"], &[("RUSTDOCFLAGS", "-D warnings")]);

fn main() -> ExitCode {
    match Arguments::parse().task {
        Task::Ci { no_test } => ci(no_test),
        Task::Bench(bench) => match bench::run(&bench) {
            Ok(()) => ExitCode::SUCCESS,
            Err(message) => {
                eprintln!("error: {message}");
                ExitCode::FAILURE
            }
        },
    }
}

fn ci(no_test: bool) -> ExitCode {
    let steps: &[Step] = if no_test { &[FORMAT, LINTS, DOCS] } else { &[FORMAT, LINTS, TESTS, DOCS] };
    for &(name, arguments, environment) in steps {
        eprintln!("xtask: {name} (cargo {})", arguments.join(" "));
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        let status = Command::new(cargo).args(arguments).envs(environment.iter().copied()).status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("xtask: {name} failed; what is wrong stands above");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
