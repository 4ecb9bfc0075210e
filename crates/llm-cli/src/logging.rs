//! Logs on standard error and results on standard output, without breaking the lines of a progress bar.

use std::io::{IsTerminal, Write};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use indicatif::{MultiProgress, ProgressDrawTarget};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::{Failure, Verbosity};

/// All progress bars of the process. They are hidden while something else is printed.
pub(crate) static BARS: LazyLock<MultiProgress> =
    LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));

/// Whether `--quiet` is given.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Sends `tracing` events to standard error. The level is info unless `--quiet`, `--verbose` or `RUST_LOG` sets another one;
/// `--quiet` also hides progress bars and [`print_status`]. On a terminal, lines have colours, unless `NO_COLOR` is set, and no timestamps.
pub fn init_logging(verbosity: Verbosity) {
    QUIET.store(verbosity.quiet, Relaxed);
    if verbosity.quiet {
        BARS.set_draw_target(ProgressDrawTarget::hidden());
    }
    let filter = match verbosity.filter() {
        Some(filter) => EnvFilter::new(filter),
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
    };
    let terminal = std::io::stderr().is_terminal();
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(terminal && !no_color)
        .with_writer(BarAwareStderr);
    // A second call changes nothing.
    if terminal {
        subscriber.without_time().try_init().ok()
    } else {
        subscriber.try_init().ok()
    };
}

/// Writes a result to standard output. If the reader has closed the pipe (`| head`), the failure has no message and exit code 0.
pub fn print(text: &str) -> Result<(), Failure> {
    let written = BARS.suspend(|| {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush())
    });
    written.map_err(|e| match e.kind() {
        std::io::ErrorKind::BrokenPipe => Failure::broken_pipe(),
        std::io::ErrorKind::StorageFull => {
            Failure::internal("standard output: disk full; free some space and try again")
        }
        _ => Failure::internal(format!("standard output: {e}")),
    })
}

/// Writes what a command did, such as the folder that it wrote and the next command, to standard output; nothing with `--quiet`.
pub fn print_status(text: &str) -> Result<(), Failure> {
    if QUIET.load(Relaxed) { Ok(()) } else { print(text) }
}

/// Standard error, with the progress bars hidden during each write.
struct BarAwareStderr;

impl Write for BarAwareStderr {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        BARS.suspend(|| std::io::stderr().write_all(bytes)).map(|()| bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

impl MakeWriter<'_> for BarAwareStderr {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}
