//! Ctrl-C in a chat: it stops the answer. Without an answer, or a second time, it ends the program.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use super::terminal;

static ANSWERING: AtomicBool = AtomicBool::new(false);
static STOP: AtomicBool = AtomicBool::new(false);

/// Installs the handler of Ctrl-C and SIGTERM. The editor reads Ctrl-C as a key, so that it gets here only during an answer.
pub(super) fn install() {
    llm_cli::on_interrupt(|| {
        if !ANSWERING.load(SeqCst) || STOP.swap(true, SeqCst) {
            terminal::restore();
            std::process::exit(130);
        }
    });
}

/// An answer that Ctrl-C stops.
pub(super) struct Answering;

impl Answering {
    /// Begins an answer.
    pub(super) fn begin() -> Self {
        STOP.store(false, SeqCst);
        ANSWERING.store(true, SeqCst);
        Self
    }

    /// Whether Ctrl-C was pressed since the begin.
    pub(super) fn is_stopped() -> bool {
        STOP.load(SeqCst)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        ANSWERING.store(false, SeqCst);
    }
}
