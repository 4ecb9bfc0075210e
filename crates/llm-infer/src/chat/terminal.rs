//! The terminal of a chat between two lines: while the model answers, what is typed or pasted is not shown and waits for the next
//! line, where a pasted text is one message. When the chat ends, what is left of it is dropped, so that the shell does not get it.

#[cfg(unix)]
use std::sync::Mutex;

#[cfg(unix)]
use rustix::termios::{InputModes, LocalModes, OptionalActions, QueueSelector, Termios, tcflush, tcgetattr, tcsetattr};

/// The modes of the terminal when the chat began.
#[cfg(unix)]
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Turns bracketed paste on and off: the terminal marks the begin and the end of a pasted text (xterm's mode 2004).
const PASTE_ON: &str = "\x1b[?2004h";
const PASTE_OFF: &str = "\x1b[?2004l";

/// The terminal of a chat; dropped, it is as it was before.
pub(super) struct Terminal;

impl Terminal {
    /// Changes the terminal of standard input and output.
    pub(super) fn hold() -> Self {
        #[cfg(unix)]
        if let Ok(before) = tcgetattr(std::io::stdin()) {
            let mut held = before.clone();
            // Ctrl-C still interrupts. Enter stays a carriage return, which the editor takes for Enter.
            held.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            held.input_modes -= InputModes::ICRNL;
            if tcsetattr(std::io::stdin(), OptionalActions::Now, &held).is_ok()
                && let Ok(mut saved) = BEFORE.lock()
            {
                *saved = Some(before);
            }
        }
        Self::hold_again();
        Self
    }

    /// Turns bracketed paste on again, which the editor turns off after each line.
    pub(super) fn hold_again() {
        write(PASTE_ON);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Makes the terminal as it was before, and drops what was typed since the last line.
pub(super) fn restore() {
    #[cfg(unix)]
    {
        let Some(before) = BEFORE.lock().ok().and_then(|mut saved| saved.take()) else { return };
        write(PASTE_OFF);
        // A terminal that is gone needs no change.
        tcflush(std::io::stdin(), QueueSelector::IFlush).ok();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &before).ok();
    }
    #[cfg(not(unix))]
    write(PASTE_OFF);
}

/// Writes to the terminal. A failure shows at the next line.
fn write(text: &str) {
    llm_cli::print(text).ok();
}
