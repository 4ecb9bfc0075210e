//! Handling of Ctrl-C in programs that can resume their work.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

static STOP: AtomicBool = AtomicBool::new(false);

/// Installs a handler for Ctrl-C and SIGTERM: the first signal sets the returned flag and prints what the program does until it
/// ends, such as `writing a checkpoint`; the second ends it at once with exit code 130.
pub fn stop_on_interrupt(until_end: &'static str) -> &'static AtomicBool {
    on_interrupt(move || {
        if STOP.swap(true, SeqCst) {
            std::process::exit(130);
        }
        crate::logging::BARS.suspend(|| {
            eprintln!("{until_end}; press Ctrl-C again to stop at once");
        });
    });
    &STOP
}

/// Installs a handler for Ctrl-C and SIGTERM, which runs in a thread of its own. A process can have one handler.
pub fn on_interrupt(handler: impl FnMut() + Send + 'static) {
    if let Err(error) = ctrlc::set_handler(handler) {
        tracing::debug!("cannot install a Ctrl-C handler: {error}");
    }
}
