//! The command line shared by both programs: arguments, logging, progress bars, one-line errors and exit codes.
//!
//! ```
//! use llm_cli::{Failure, Progress};
//!
//! let mut progress = Progress::new("sum", 3, "numbers", 0);
//! for done in 1..=3 {
//!     progress.update(done, "adding");
//! }
//! progress.finish();
//!
//! let code = llm_cli::run(|| Err(Failure::input("data.txt: no such file; check the path")));
//! assert_eq!(code, std::process::ExitCode::from(2));
//! ```
//!
//! [`HubOption`] is the option `--offline`, with which a model may be a name on the Hugging Face hub.
//!
//! This crate does not depend on the model crates. Where to look next: the `cli` modules of `llm-train` and `llm-infer`.
//!
//! `examples/program.rs` is an example to copy: a small program.

mod arguments;
mod device;
mod failure;
mod hub;
mod interrupt;
mod logging;
mod manual;
mod progress;
mod verbosity;

pub use arguments::parse_arguments;
pub use device::DeviceOption;
pub use failure::{Failure, run};
pub use hub::{HubOption, TransferProgress};
pub use interrupt::{on_interrupt, stop_on_interrupt};
pub use logging::{init_logging, print, print_status};
pub use manual::ShellCommand;
pub use progress::Progress;
pub use verbosity::{GLOBAL_HEADING, Verbosity};

/// mimalloc reuses freed memory. The system allocator returns each large tensor to the kernel and maps new pages for the next
/// one, thousands of times per second.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Parses `key=value` for clap (`--set optimizer.learning_rate=0.001`); spaces around key and value are removed.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_setting_is_split_at_the_first_equals_sign() {
        assert_eq!(super::key_value("a.b = c=d").unwrap(), ("a.b".to_owned(), "c=d".to_owned()));
        assert!(super::key_value("steps").is_err() && super::key_value("=3").is_err());
    }
}
