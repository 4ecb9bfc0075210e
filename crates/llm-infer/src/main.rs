//! `llm-infer`: talk to a model, or ask for its logits.

use std::process::ExitCode;

use clap::Parser;
use llm_infer::cli::{Arguments, execute};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    llm_cli::init_logging();
    llm_cli::run(|| execute(arguments))
}
