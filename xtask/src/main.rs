//! Tasks for developers of this workspace: `cargo xtask ci` runs every check that a commit must pass, `cargo xtask bench`
//! measures our programs and compares them with others, `cargo xtask cuda-check` checks the feature `cuda`, `cargo xtask
//! dependent-check` uses the libraries from a project of its own, and `cargo xtask fetch-data` fetches datasets.

// Links the allocator that the programs use, so that the kernel benchmark runs with it.
use llm_cli as _;

mod bench;
mod cuda;
mod data;
mod dependent;
mod kernels;
mod tokenizers;

use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};

/// Tasks for developers of this workspace
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check format, lints, tests, documentation and dependencies; stop at the first failure
    Ci {
        /// Skip the tests
        #[arg(long)]
        no_test: bool,
    },
    /// Check types and lints with the feature `cuda`, without CUDA and without a GPU (about 6 CPU minutes the first time)
    CudaCheck,
    /// Build and run a project outside of the workspace that uses its libraries (about 6 CPU minutes the first time)
    DependentCheck,
    /// Fetch datasets and small models: a catalogue with licences, transfers that resume, a lock file with checksums
    FetchData(data::FetchData),
    /// Fetch a dataset and make token shards of it, by the steps of a recipe; an interrupted preparation goes on
    PrepareData(data::PrepareData),
    /// Measure our programs, and other programs to compare with
    #[command(subcommand)]
    Bench(bench::Bench),
}

/// A step of `ci`: its name, the arguments of cargo, and the environment variables to set.
type Step = (&'static str, &'static [&'static str], &'static [(&'static str, &'static str)]);

const FORMAT: Step = ("format", &["fmt", "--all", "--check"], &[]);
const LINTS: Step = ("lints", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[]);
const TESTS: Step = ("tests", &["test", "--workspace"], &[]);
const DOCS: Step = ("documentation", &["doc", "--workspace", "--no-deps"], &[("RUSTDOCFLAGS", "-D warnings")]);

fn main() -> ExitCode {
    match Arguments::parse().task {
        Task::Ci { no_test } => ci(no_test),
        Task::CudaCheck => exit_code(cuda::check()),
        Task::DependentCheck => exit_code(dependent::check()),
        Task::FetchData(args) => logged(|| data::fetch_data(&args)),
        Task::PrepareData(args) => logged(|| data::prepare_data(&args)),
        Task::Bench(bench) => exit_code(bench::run(&bench)),
    }
}

/// Runs a task that logs what it does.
fn logged(task: impl FnOnce() -> Result<(), llm_cli::Failure>) -> ExitCode {
    llm_cli::run(|| {
        llm_cli::init_logging(llm_cli::Verbosity::default());
        task()
    })
}

fn exit_code(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn ci(no_test: bool) -> ExitCode {
    let steps: &[Step] = if no_test { &[FORMAT, LINTS, DOCS] } else { &[FORMAT, LINTS, TESTS, DOCS] };
    for &(name, arguments, environment) in steps {
        eprintln!("xtask: {name} (cargo {})", arguments.join(" "));
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        let status = Command::new(cargo).args(arguments).envs(environment.iter().copied()).status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("xtask: {name} failed; see the output above");
            return ExitCode::FAILURE;
        }
    }
    check_dependencies()
}

/// Licences, advisories and duplicates of the dependencies, by `deny.toml`.
fn check_dependencies() -> ExitCode {
    let deny = |arguments: &[&str]| Command::new("cargo-deny").args(arguments).status();
    if deny(&["--version"]).is_err() {
        eprintln!("xtask: dependencies skipped, cargo-deny is not installed (cargo install --locked cargo-deny)");
        return ExitCode::SUCCESS;
    }
    eprintln!("xtask: dependencies (cargo deny check)");
    match deny(&["check"]) {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        _ => {
            eprintln!("xtask: dependencies failed; see the output above");
            ExitCode::FAILURE
        }
    }
}
