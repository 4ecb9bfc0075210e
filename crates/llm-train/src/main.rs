//! The program `llm-train`: every way in which a model learns. `llm_train::cli` holds its commands.

use std::process::ExitCode;

use clap::Parser;
use llm_train::cli::{Arguments, execute};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    llm_cli::init_logging();
    llm_cli::run(|| execute(arguments))
}
