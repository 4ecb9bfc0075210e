//! A program as a source: it is started once, reads one JSON line for each reply and writes one number on a line for each.
//!
//! Standard input and output of the program have a thread each, so that neither side waits for the other. Its standard error is kept
//! for messages. The program ends with its standard input, and is killed when the source is dropped.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Answer;
use crate::{Error, Result};

/// A running program that scores replies.
#[derive(Debug)]
pub struct Program {
    /// The program and its arguments, for messages.
    name: String,
    timeout: Duration,
    running: Mutex<Running>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    /// To the thread that writes the program's standard input; `None` once it is closed.
    input: Option<Sender<String>>,
    /// The lines of the program's standard output.
    lines: Receiver<std::io::Result<String>>,
    errors: Errors,
}

/// The end of the program's standard error.
#[derive(Debug, Clone, Default)]
struct Errors(Arc<Mutex<VecDeque<u8>>>);

/// Number of bytes of the standard error that are kept, and of a wrong line that are shown.
const KEPT: usize = 2000;
const SHOWN: usize = 100;

/// The longest line that is read: a score has at most a few bytes.
const LONGEST: u64 = 1 << 16;

/// How long the program may take to end by itself when its standard input is closed.
const GRACE: Duration = Duration::from_millis(500);

impl Program {
    /// Starts a program with its arguments. `timeout` is the longest wait for a score.
    pub fn start(command: &[String], timeout: Duration) -> Result<Self> {
        let (program, arguments) =
            command.split_first().ok_or_else(|| Error::BadRequest("command is empty".to_owned()))?;
        let mut starting = Command::new(program);
        starting.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C reaches this program only, which ends its step first.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut starting, 0);
        let name = command.iter().map(|part| crate::error::shell_word(part.as_ref())).collect::<Vec<_>>().join(" ");
        let mut child = starting.spawn().map_err(|error| {
            Error::BadRequest(format!("{program} cannot be started: {}; give its path", llm_files::error_text(&error)))
        })?;
        let (input, written) = channel::<String>();
        let (read, lines) = channel();
        let errors = Errors::default();
        if let (Some(mut stdin), Some(stdout), Some(mut stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        {
            std::thread::spawn(move || {
                while let Ok(text) = written.recv() {
                    if stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).is_err() {
                        return; // the reader finds out why
                    }
                }
            });
            std::thread::spawn(move || {
                let mut stdout = BufReader::new(stdout);
                while let Some(line) = next_line(&mut stdout) {
                    if read.send(line).is_err() {
                        return;
                    }
                }
            });
            let errors = errors.clone();
            std::thread::spawn(move || errors.read(&mut stderr));
        }
        let running = Mutex::new(Running { child, input: Some(input), lines, errors });
        Ok(Self { name, timeout, running })
    }

    /// The score of each answer.
    pub(super) fn scores(&self, answers: &[Answer]) -> Result<Vec<f64>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(Ok(line)) = running.lines.try_recv() {
            let line = shortened(&line);
            return Err(self.failed(
                &mut running,
                &format!("wrote \"{line}\" without a question; it must write one line per reply"),
            ));
        }
        let mut text = String::new();
        for answer in answers {
            let line = serde_json::to_string(answer).map_err(|e| Error::Internal(format!("a reply as JSON: {e}")))?;
            text.push_str(&line);
            text.push('\n');
        }
        // A program that has ended is found by its missing answer.
        let _ = running.input.as_ref().map(|input| input.send(text));
        let count = answers.len();
        let mut scores = Vec::with_capacity(count);
        while scores.len() < count {
            let at = scores.len() + 1;
            let score = match running.lines.recv_timeout(self.timeout) {
                Ok(Ok(line)) => line.trim().parse::<f64>().ok().filter(|score| score.is_finite()).ok_or_else(|| {
                    let line = shortened(&line);
                    format!(
                        "wrote \"{line}\" for reply {at} of {count}; it must write one finite number per line, and everything \
                         else to its standard error"
                    )
                }),
                Ok(Err(error)) => Err(format!("wrote a line that cannot be read ({error}) for reply {at} of {count}; it must write numbers")),
                Err(RecvTimeoutError::Timeout) => Err(format!(
                    "wrote no score for reply {at} of {count} within {} s; it must flush its output after each line, or raise \
                     timeout_seconds",
                    self.timeout.as_secs_f64()
                )),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = running.status();
                    Err(format!("{status} before the score of reply {at} of {count}; it must read lines until its standard input ends"))
                }
            };
            match score {
                Ok(score) => scores.push(score),
                Err(what) => return Err(self.failed(&mut running, &what)),
            }
        }
        Ok(scores)
    }

    /// The error of a program that is of no more use; it is ended.
    fn failed(&self, running: &mut Running, what: &str) -> Error {
        running.end();
        let errors = running.errors.text();
        let errors =
            if errors.is_empty() { String::new() } else { format!("; its standard error ends with: {errors}") };
        Error::BadRequest(format!("the program {}: {what}{errors}", self.name))
    }
}

impl Running {
    /// How the program ended, in words.
    fn status(&mut self) -> String {
        let end = Instant::now() + GRACE;
        while Instant::now() < end {
            match self.child.try_wait() {
                Ok(Some(status)) => return format!("ended ({status})"),
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                Err(_) => break,
            }
        }
        "closed its standard output".to_owned()
    }

    /// Closes the program's standard input, waits for a moment, and kills it.
    fn end(&mut self) {
        self.input = None;
        self.status();
        let _ = self.child.kill(); // an error means that it has ended
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

impl Errors {
    /// Reads to the end and keeps the last bytes.
    fn read(&self, from: &mut impl Read) {
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend(&buffer[..count]);
            let more = kept.len().saturating_sub(KEPT);
            kept.drain(..more);
        }
    }

    /// The kept bytes on one line.
    fn text(&self) -> String {
        let bytes: Vec<u8> = self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        String::from_utf8_lossy(&bytes).split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// The next line without its end; `None` at the end of the file.
fn next_line(from: &mut impl BufRead) -> Option<std::io::Result<String>> {
    let mut line = Vec::new();
    match from.by_ref().take(LONGEST).read_until(b'\n', &mut line) {
        Ok(0) => None,
        Ok(_) => Some(Ok(String::from_utf8_lossy(&line).trim_end().to_owned())),
        Err(error) => Some(Err(error)),
    }
}

/// The beginning of a line, for a message.
fn shortened(line: &str) -> String {
    let mut short: String = line.chars().take(SHOWN).collect();
    if short.len() < line.len() {
        short.push('…');
    }
    short
}
