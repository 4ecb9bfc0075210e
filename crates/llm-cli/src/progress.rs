//! Progress of long work: a bar on a terminal, log lines elsewhere.

use std::fmt::Write;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use console::{Term, measure_text_width};
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressState, ProgressStyle};

use crate::logging::BARS;

const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Columns for a bar, a rate, the remaining time and a message.
const WIDE: usize = 75;

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
            let columns = Term::stderr().size_checked().map_or(80, |(_, columns)| usize::from(columns));
            if let Some(style) = style(columns.saturating_sub(measure_text_width(title)), unit, done) {
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
        let left = if rate > 0. && done < self.total {
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

/// The line of a task that began after `first` units, with `columns` columns after the title. On a narrow terminal it has no bar
/// and no rate, so that the message is not cut.
fn style(columns: usize, unit: &str, first: u64) -> Option<ProgressStyle> {
    let template = match columns < WIDE {
        true => "{prefix} {percent:>3} %{left} {wide_msg}",
        false => "{prefix} {bar:10} {percent:>3} %{rate}{left} {wide_msg}",
    };
    let unit = unit.to_owned();
    let rate = move |state: &ProgressState, out: &mut dyn Write| {
        if state.pos() > first {
            // A failed write to the bar's own buffer only shortens the line.
            write!(out, " {} {unit}/s", rate_text(state.per_sec())).ok();
        }
    };
    // Without a rate, or when all units are done, the remaining time is unknown: an evaluation may follow.
    let left = move |state: &ProgressState, out: &mut dyn Write| {
        if state.pos() > first && state.len().is_some_and(|total| state.pos() < total) {
            write!(out, " {:#} left", HumanDuration(state.eta())).ok();
        }
    };
    Some(ProgressStyle::with_template(template).ok()?.with_key("rate", rate).with_key("left", left))
}

/// A rate with one decimal below 100 and none above.
fn rate_text(rate: f64) -> String {
    if rate < 100. { format!("{rate:.1}") } else { HumanCount(rate.round() as u64).to_string() }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use indicatif::{ProgressDrawTarget, TermLike};

    use super::*;

    #[test]
    fn a_log_line_contains_progress_rate_and_remaining_time() {
        let progress = Progress::new("pretrain", 1000, "steps", 400);
        let line = progress.line(500, "loss 2.1", Duration::from_secs(10));
        assert_eq!(line, "pretrain: 500/1,000 steps, 10.0/s, 50 seconds left; loss 2.1");
        let line = progress.line(400, "", Duration::from_secs(10));
        assert_eq!(line, "pretrain: 400/1,000 steps, 0.0/s");
        let line = progress.line(1000, "evaluating on 2 rankings", Duration::from_secs(10));
        assert_eq!(line, "pretrain: 1,000/1,000 steps, 60.0/s; evaluating on 2 rankings");
    }

    /// A terminal that keeps the last line.
    #[derive(Debug)]
    struct Screen {
        columns: u16,
        line: Arc<Mutex<String>>,
    }

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            self.columns
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.line.lock().unwrap().push_str(text);
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            self.line.lock().unwrap().clear();
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The line of `title` on a terminal after 10 and then `done` of 100 units, 10 of them in an earlier run.
    fn shown(columns: u16, title: &str, done: u64, message: &str) -> String {
        let line = Arc::new(Mutex::new(String::new()));
        let screen = Screen { columns, line: Arc::clone(&line) };
        let bar = ProgressBar::with_draw_target(Some(100), ProgressDrawTarget::term_like(Box::new(screen)));
        bar.set_style(style(usize::from(columns) - measure_text_width(title), "tokens", 10).unwrap());
        bar.set_prefix(title.to_owned());
        bar.set_position(10);
        bar.reset_eta();
        std::thread::sleep(Duration::from_millis(20));
        bar.set_message(message.to_owned());
        bar.set_position(done);
        bar.tick();
        let line = line.lock().unwrap().trim_end().to_owned();
        assert!(measure_text_width(&line) <= usize::from(columns), "{line}");
        line
    }

    #[test]
    fn a_narrow_terminal_shows_the_whole_message() {
        let title = "[6/7] baseline of distillation";
        let line = shown(60, title, 50, "loss 5.9704");
        assert!(line.starts_with(&format!("{title}  50 % ")) && line.ends_with(" left loss 5.9704"), "{line}");
        let line = shown(60, "[1/7] pre-training", 100, "evaluating on 40,960 tokens");
        assert_eq!(line, "[1/7] pre-training 100 % evaluating on 40,960 tokens");
        let line = shown(100, "base", 50, "loss 5.9704");
        assert!(line.contains(" tokens/s ") && line.ends_with(" left loss 5.9704"), "{line}");
    }

    #[test]
    fn the_remaining_time_is_shown_only_if_it_is_known() {
        for (done, message) in [(10, ""), (100, "evaluating")] {
            let line = shown(100, "base", done, message);
            assert!(!line.contains("left"), "{line}");
        }
        assert!(shown(100, "base", 11, "").ends_with(" left"));
    }

    #[test]
    fn a_rate_has_a_decimal_only_if_it_is_small() {
        assert_eq!([3.16, 99.96, 22579.26].map(rate_text), ["3.2", "100.0", "22,579"]);
    }
}
