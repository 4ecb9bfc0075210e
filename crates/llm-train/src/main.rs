//! The program `llm-train`. Its commands are in `llm_train::cli`.

use std::process::ExitCode;

use llm_train::cli::{Arguments, execute};

fn main() -> ExitCode {
    let arguments = llm_cli::parse_arguments::<Arguments>();
    llm_cli::init_logging(arguments.verbosity);
    llm_cli::run(|| execute(arguments))
}
