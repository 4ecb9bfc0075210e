//! What Ctrl-C does while a program is at work that can be resumed.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

static ASKED: AtomicBool = AtomicBool::new(false);

/// From now on the first Ctrl-C (or SIGTERM) sets the flag that is returned, and the second ends the program at once with exit
/// code 130.
pub fn stop_on_interrupt() -> &'static AtomicBool {
    let handler = || {
        if ASKED.swap(true, SeqCst) {
            std::process::exit(130);
        }
        crate::logging::BARS.suspend(|| {
            eprintln!("stopping after this step, with a checkpoint; press Ctrl-C again to stop at once");
        });
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        tracing::debug!("Ctrl-C keeps its usual meaning: {error}");
    }
    &ASKED
}
