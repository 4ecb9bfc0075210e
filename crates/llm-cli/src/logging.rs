//! Logs on standard error and results on standard output, without breaking the lines of a progress bar.

use std::io::{IsTerminal, Write};
use std::sync::LazyLock;

use indicatif::{MultiProgress, ProgressDrawTarget};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::Failure;

/// All progress bars of the process. They are hidden while something else is printed.
pub(crate) static BARS: LazyLock<MultiProgress> =
    LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));

/// Sends `tracing` events to standard error, at level info and above unless `RUST_LOG` sets another filter.
pub fn init_logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(BarAwareStderr);
    // A second call changes nothing.
    subscriber.try_init().ok();
}

/// Writes a result to standard output. If the reader has closed the pipe (`| head`), the failure has no message and exit code 0.
pub fn print(text: &str) -> Result<(), Failure> {
    let written = BARS.suspend(|| {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush())
    });
    written.map_err(|e| match e.kind() {
        std::io::ErrorKind::BrokenPipe => Failure::broken_pipe(),
        _ => Failure::internal(format!("standard output: {e}")),
    })
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
