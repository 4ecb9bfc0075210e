//! The report of `llm-train params` as text.

use std::fmt;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use llm_model::cost::{Flops, TrainingMemory};

use super::{Report, Time};

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (batch, seq_len) = (sequences(self.batch_size), self.seq_len);
        writeln!(f, "{} ({}): {} parameters", self.model, self.model_type, grouped(self.total))?;
        if self.active < self.total {
            writeln!(f, "active per token: {} ({})", grouped(self.active), percent(self.active, self.total))?;
        }
        writeln!(f, "\n{}", table(self.parameter_rows()))?;
        writeln!(f, "\nInference memory with an f32 KV cache, {batch}, by context length:")?;
        writeln!(f, "{}", table(self.inference_rows()))?;
        writeln!(f, "\nTraining memory with AdamW (weights, gradients, moments: f32), {batch} of {seq_len} tokens:")?;
        writeln!(f, "{}", table(self.training_rows()))?;
        writeln!(f, "With optimizer.kind = \"muon\" the moments are {}.", bytes(self.muon_moments))?;
        writeln!(f, "\nFLOPs per token at sequence length {seq_len}:\n{}", table(self.flops_rows()))?;
        self.time.as_ref().map_or(Ok(()), |time| time.fmt(f))
    }
}

/// A table without lines: the first column is aligned left, the others right.
fn table(rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).add_rows(rows);
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((if i == 0 { 0 } else { 2 }, 0));
        column.set_cell_alignment(if i == 0 { CellAlignment::Left } else { CellAlignment::Right });
    }
    table.trim_fmt()
}

fn row<const N: usize>(name: impl Into<String>, cells: [String; N]) -> Vec<String> {
    [name.into()].into_iter().chain(cells).collect()
}

impl Report {
    fn parameter_rows(&self) -> Vec<Vec<String>> {
        let count = &self.parameters;
        let parts = [
            ("embeddings", count.embedding),
            ("attention", count.attention),
            ("feed-forward", count.mlp),
            ("routers", count.routers),
            ("experts", count.experts),
            ("  active per token", count.active_experts),
            ("norms", count.norms),
            ("head", count.head),
            ("  tied head, in embeddings", count.tied),
        ];
        let parts = parts.into_iter().filter(|(_, number)| *number > 0);
        parts.map(|(name, number)| row(name, [grouped(number), percent(number, self.total)])).collect()
    }

    fn inference_rows(&self) -> Vec<Vec<String>> {
        let line = |name: &str, weights: String, cells: Vec<String>| [row(name, [weights]), cells].concat();
        let contexts = &self.contexts;
        let mut rows = vec![line(
            "dtype",
            "weights".to_owned(),
            contexts.iter().map(|context| format!("+ {}", context.tokens)).collect(),
        )];
        rows.extend(self.serving.iter().map(|serving| {
            line(
                &serving.dtype.to_string(),
                bytes(serving.weights),
                serving.with_cache.iter().copied().map(bytes).collect(),
            )
        }));
        rows.push(line("cache", String::new(), contexts.iter().map(|context| bytes(context.kv_cache)).collect()));
        rows
    }

    fn training_rows(&self) -> Vec<Vec<String>> {
        let titles =
            ["weights", "gradients", "moments", "activations", "working", "not at peak", "total"].map(str::to_owned);
        let mut rows = vec![row("compute dtype", titles)];
        rows.extend(self.training.iter().map(|training| {
            let TrainingMemory { weights, gradients, moments, activations, working, not_at_peak } = training.memory;
            let suffix = if training.activation_checkpointing { ", checkpointed" } else { "" };
            let numbers = [weights, gradients, moments, activations, working, not_at_peak, training.total].map(bytes);
            row(format!("{}{suffix}", training.precision), numbers)
        }));
        rows
    }

    fn flops_rows(&self) -> Vec<Vec<String>> {
        let Flops { matrices, attention, head } = self.forward;
        let training = |checkpointed| self.forward.training(checkpointed);
        let parts = [
            ("matrices", matrices),
            ("attention", attention),
            ("head", head),
            ("forward", self.forward_flops),
            ("training, 3 x forward", training(false)),
            ("training, checkpointed", training(true)),
        ];
        parts.into_iter().map(|(name, number)| row(name, [scaled(number, "FLOP")])).collect()
    }
}

impl Time {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let speed = |per_second| [format!("{} tokens/s", decimal(per_second))];
        let rows = vec![
            row("prefill", speed(self.forward_tokens_per_second)),
            row("training", speed(self.training_tokens_per_second)),
        ];
        writeln!(f, "\nAt {} sustained:\n{}", scaled(self.flops_per_second, "FLOP/s"), table(rows))?;
        if let (Some(tokens), Some(plain), Some(checkpointed)) =
            (self.tokens, self.training_seconds, self.training_seconds_checkpointed)
        {
            let (plain, checkpointed) = (duration(plain), duration(checkpointed));
            writeln!(f, "Training on {} tokens takes {plain}, checkpointed {checkpointed}.", decimal(tokens))?;
        }
        Ok(())
    }
}

fn sequences(count: u64) -> String {
    if count == 1 { "1 sequence".to_owned() } else { format!("{count} sequences") }
}

/// The number with a comma between groups of three digits.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number with two decimals if it is below 100.
fn decimal(number: f64) -> String {
    if number < 100. { format!("{number:.2}") } else { grouped(number.round() as usize) }
}

fn percent(part: usize, whole: usize) -> String {
    format!("{:.1} %", 100. * part as f64 / whole as f64)
}

fn bytes(number: u64) -> String {
    scaled(number as f64, "B")
}

/// Three significant digits with an SI prefix: 1 GB is 10⁹ bytes.
fn scaled(number: f64, unit: &str) -> String {
    let (mut number, mut prefixes) = (number, ["", "k", "M", "G", "T", "P", "E", "Z", "Y"].into_iter());
    let mut prefix = prefixes.next().unwrap_or_default();
    while number >= 999.5 {
        let Some(next) = prefixes.next() else { break };
        (number, prefix) = (number / 1000., next);
    }
    let digits = match number {
        x if x < 9.995 => 2,
        x if x < 99.95 && !prefix.is_empty() => 1,
        _ => 0,
    };
    format!("{number:.digits$} {prefix}{unit}")
}

fn duration(seconds: f64) -> String {
    const DAY: f64 = 86400.;
    match seconds {
        s if s < 120. => format!("{s:.1} seconds"),
        s if s < 7200. => format!("{:.1} minutes", s / 60.),
        s if s < 2. * DAY => format!("{:.1} hours", s / 3600.),
        s if s < 730. * DAY => format!("{:.1} days", s / DAY),
        s => format!("{:.1} years", s / (365.25 * DAY)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_aligns_numbers_right() {
        let rows = vec![row("name", ["n".to_owned()]), row("  tied", ["1,000".to_owned()])];
        assert_eq!(table(rows), "name        n\n  tied  1,000");
    }

    #[test]
    fn numbers_are_formatted() {
        assert_eq!([0, 7, 1000, 134_515_008].map(grouped), ["0", "7", "1,000", "134,515,008"]);
        let formatted = [0., 512., 999.6, 8.16e9, 16.06e9, 349.2e9, 1.05e12, 3.14e23].map(|x| scaled(x, "B"));
        assert_eq!(formatted, ["0.00 B", "512 B", "1.00 kB", "8.16 GB", "16.1 GB", "349 GB", "1.05 TB", "314 ZB"]);
        assert_eq!([0.123, 99., 2826.4].map(decimal), ["0.12", "99.00", "2,826"]);
        let durations = [5., 600., 9000., 3e5, 1e9].map(duration);
        assert_eq!(durations, ["5.0 seconds", "10.0 minutes", "2.5 hours", "3.5 days", "31.7 years"]);
    }
}
