//! Progress of long work: a bar on a terminal, log lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};

use crate::logging::BARS;

const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// The progress of one task, with its rate and the remaining time.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    title: String,
    unit: String,
    total: u64,
    first: u64,
    started: Instant,
    logged: Instant,
}

impl Progress {
    /// Starts the progress of a task called `title` with `total` units of work (`unit` is their plural name), `done` of them
    /// already complete.
    pub fn new(title: &str, total: u64, unit: &str, done: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = BARS.add(ProgressBar::new(total).with_position(done));
            let template = format!(
                "{{prefix:>10}} {{bar:30}} {{human_pos}}/{{human_len}} {unit} {{per_sec}} {{eta}} left {{msg}}"
            );
            if let Ok(style) = ProgressStyle::with_template(&template) {
                bar.set_style(style);
            }
            bar.set_prefix(title.to_owned());
            bar.reset_eta();
            bar
        });
        let now = Instant::now();
        Self { bar, title: title.to_owned(), unit: unit.to_owned(), total, first: done, started: now, logged: now }
    }

    /// Shows that `done` units are complete. `message` is shown after them, for example the latest metrics.
    pub fn update(&mut self, done: u64, message: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(message.to_owned());
            bar.set_position(done);
        } else if self.logged.elapsed() >= LOG_INTERVAL {
            self.logged = Instant::now();
            tracing::info!("{}", self.line(done, message, self.started.elapsed()));
        }
    }

    /// Ends the task and removes the bar.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }

    fn line(&self, done: u64, message: &str, elapsed: Duration) -> String {
        let rate = done.saturating_sub(self.first) as f64 / elapsed.as_secs_f64().max(1e-9);
        let left = if rate > 0. {
            let seconds = (self.total.saturating_sub(done) as f64 / rate).min(1e9);
            format!(", {} left", HumanDuration(Duration::from_secs(seconds as u64)))
        } else {
            String::new()
        };
        let (done, total) = (HumanCount(done), HumanCount(self.total));
        let gap = if message.is_empty() { "" } else { "; " };
        format!("{}: {done}/{total} {}, {rate:.1}/s{left}{gap}{message}", self.title, self.unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_contains_progress_rate_and_remaining_time() {
        let progress = Progress::new("pretrain", 1000, "steps", 400);
        let line = progress.line(500, "loss 2.1", Duration::from_secs(10));
        assert_eq!(line, "pretrain: 500/1,000 steps, 10.0/s, 50 seconds left; loss 2.1");
        let line = progress.line(400, "", Duration::from_secs(10));
        assert_eq!(line, "pretrain: 400/1,000 steps, 0.0/s");
    }
}
