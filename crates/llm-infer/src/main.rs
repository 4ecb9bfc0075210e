//! The program `llm-infer`: generate text, chat, convert and measure models.

use std::process::ExitCode;

use llm_infer::cli::{Arguments, execute};

fn main() -> ExitCode {
    let arguments = llm_cli::parse_arguments::<Arguments>();
    llm_cli::init_logging(arguments.verbosity);
    llm_cli::run(|| execute(arguments))
}
