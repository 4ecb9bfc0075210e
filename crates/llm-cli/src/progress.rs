//! Progress of long work: a bar on a terminal, log lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressState, ProgressStyle};

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
            let template =
                format!("{{prefix}} {{bar:10}} {{percent:>3}} % {{rate}} {unit}/s {{eta}} left {{wide_msg}}");
            if let Ok(style) = ProgressStyle::with_template(&template) {
                bar.set_style(style.with_key("rate", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                    // A failed write to the bar's own buffer only shortens the line.
                    write!(out, "{}", rate_text(state.per_sec())).ok();
                }));
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
        let rate = rate_text(rate);
        format!("{}: {done}/{total} {}, {rate}/s{left}{gap}{message}", self.title, self.unit)
    }
}

/// A rate with one decimal below 100 and none above.
fn rate_text(rate: f64) -> String {
    if rate < 100. { format!("{rate:.1}") } else { HumanCount(rate.round() as u64).to_string() }
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

    #[test]
    fn a_rate_has_a_decimal_only_if_it_is_small() {
        assert_eq!([3.16, 99.96, 22579.26].map(rate_text), ["3.2", "100.0", "22,579"]);
    }
}
