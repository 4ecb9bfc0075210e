//! The command line of the program `llm-infer`, as a library for tests: its arguments can be parsed and executed.
//!
//! ```
//! use clap::Parser;
//! use llm_infer::cli::Arguments;
//!
//! let words = ["llm-infer", "generate", "--model", "runs/lifecycle/aligned", "--prompt", "What is the capital of France?"];
//! assert!(Arguments::try_parse_from(words).is_ok());
//! ```
//!
//! To generate text from a program of your own, use `llm-engine`.

mod adapter;
mod args;
mod attention;
mod chat;
pub mod cli;
mod convert;
mod dtype;
mod failure;
mod generate;
mod generation_args;
mod hub;
mod merge;
mod prompt;
mod sampling_args;
mod serve;
mod settings;
mod temperature;
mod text_model;
mod vote;
