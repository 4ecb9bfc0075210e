//! Estimated cost of a model from its configuration, for `llm-train params`. The formulas are in [`llm_model::cost`].

use std::fmt;
use std::path::Path;

use llm_kernels::{BlockFormat, Precision};
use llm_model::cost::{Flops, TrainingMemory, TrainingShape, kv_cache_bytes, weight_bytes};
use llm_model::presets::{PRESETS, preset};
use llm_model::{Head, ModelConfig, ParamCount, WeightFormat, read_config};
use serde::Serialize;

use crate::{Error, Result};

/// The workload to estimate the cost for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// Sequences per batch, in inference and in training.
    pub batch_size: u64,
    /// Training sequence length in tokens; `None`: 2048, or the model's context length if that is shorter.
    pub seq_len: Option<u64>,
    /// Context lengths for the KV cache in tokens; empty: the training sequence length and the model's context length.
    pub contexts: Vec<u64>,
    /// Sustained speed of the machine in FLOP/s.
    pub flops: Option<f64>,
    /// Number of training tokens.
    pub tokens: Option<f64>,
}

/// The report of `llm-train params`, as tables (`Display`) or JSON. Memory is in bytes; FLOPs are per token.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    model: String,
    model_type: String,
    parameters: ParamCount,
    total: usize,
    active: usize,
    batch_size: u64,
    seq_len: u64,
    contexts: Vec<Context>,
    serving: Vec<Serving>,
    training: Vec<Training>,
    forward: Flops,
    forward_flops: f64,
    time: Option<Time>,
}

/// The KV cache of a batch at one context length.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Context {
    tokens: u64,
    kv_cache: u64,
}

/// Inference memory: weights in one format, and weights plus KV cache for each context length.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Serving {
    dtype: &'static str,
    weights: u64,
    with_cache: Vec<u64>,
}

/// Training memory and FLOPs of one configuration.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Training {
    precision: &'static str,
    activation_checkpointing: bool,
    memory: TrainingMemory,
    total: u64,
    flops_per_token: f64,
}

/// Speed and training time on a machine with this sustained speed.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Time {
    flops_per_second: f64,
    forward_tokens_per_second: f64,
    training_tokens_per_second: f64,
    tokens: Option<f64>,
    training_seconds: Option<f64>,
    training_seconds_checkpointed: Option<f64>,
}

const FORMATS: [(&str, WeightFormat); 6] = [
    ("f32", WeightFormat::F32),
    ("bf16", WeightFormat::Bf16),
    ("q8_0", WeightFormat::Quantized(BlockFormat::Q8_0)),
    ("q6_k", WeightFormat::Quantized(BlockFormat::Q6_K)),
    ("q4_k", WeightFormat::Quantized(BlockFormat::Q4_K)),
    ("q4_0", WeightFormat::Quantized(BlockFormat::Q4_0)),
];

/// The configuration and head from a `config.json`, a folder with one, or a preset.
fn find(model: &str) -> Result<(ModelConfig, Head)> {
    if let Some(config) = preset(model) {
        return Ok((config.validated(model)?, Head::LanguageModel));
    }
    let path = Path::new(model);
    if !path.exists() {
        let known = PRESETS.join(", ");
        return Err(Error::Input(format!("{model}: no such file, folder or known model; known models: {known}")));
    }
    let described = read_config(path)?;
    Ok((described.config, described.head))
}

impl Report {
    /// The report for a `config.json`, a folder with one, or one of [`PRESETS`].
    pub fn of(model: &str, usage: &Usage) -> Result<Self> {
        let (config, head) = find(model)?;
        let longest = config.max_position_embeddings as u64;
        let (batch_size, seq_len) = (usage.batch_size, usage.seq_len.unwrap_or(longest.min(2048)));
        let contexts = match usage.contexts.as_slice() {
            [] if seq_len < longest => vec![seq_len, longest],
            [] => vec![seq_len],
            contexts => contexts.to_vec(),
        };
        check(&config, batch_size, contexts.iter().copied().chain([seq_len]), usage)?;
        let contexts: Vec<Context> = contexts
            .into_iter()
            .map(|tokens| Context { tokens, kv_cache: kv_cache_bytes(&config, batch_size, tokens) })
            .collect();
        let serving = FORMATS.map(|(dtype, format)| {
            let weights = weight_bytes(&config, head, format);
            Serving { dtype, weights, with_cache: contexts.iter().map(|context| weights + context.kv_cache).collect() }
        });
        let flops = Flops::of(&config, head, seq_len);
        let dtypes = [("f32", Precision::F32), ("bf16", Precision::Bf16)];
        let configurations = dtypes.into_iter().flat_map(|dtype| [(dtype, false), (dtype, true)]);
        let training = configurations.map(|((name, precision), checkpointed)| {
            let memory =
                TrainingMemory::of(&config, head, &TrainingShape { batch_size, seq_len, checkpointed, precision });
            Training {
                precision: name,
                activation_checkpointing: checkpointed,
                memory,
                total: memory.total(),
                flops_per_token: flops.training(checkpointed),
            }
        });
        let parameters = ParamCount::of(&config, head);
        Ok(Self {
            model: model.to_owned(),
            model_type: config.model_type.name(),
            parameters,
            total: parameters.total(),
            active: parameters.active(),
            batch_size,
            seq_len,
            contexts,
            serving: serving.into(),
            training: training.collect(),
            forward: flops,
            forward_flops: flops.forward(),
            time: usage.flops.map(|per_second| Time::of(&flops, per_second, usage.tokens)),
        })
    }

    /// The report as JSON.
    pub fn json(&self) -> Result<String> {
        let json = serde_json::to_string_pretty(self).map_err(|e| Error::Input(format!("{}: {e}", self.model)))?;
        Ok(format!("{json}\n"))
    }
}

impl Time {
    fn of(flops: &Flops, per_second: f64, tokens: Option<f64>) -> Self {
        let seconds = |checkpointed| tokens.map(|tokens| tokens * flops.training(checkpointed) / per_second);
        Self {
            flops_per_second: per_second,
            forward_tokens_per_second: per_second / flops.forward(),
            training_tokens_per_second: per_second / flops.training(false),
            tokens,
            training_seconds: seconds(false),
            training_seconds_checkpointed: seconds(true),
        }
    }
}

/// Returns an error if a length exceeds the learned positions, or a number is out of range.
fn check(config: &ModelConfig, batch_size: u64, mut lengths: impl Iterator<Item = u64>, usage: &Usage) -> Result<()> {
    let room = config.max_position_embeddings as u64;
    let limit = 1 << 32;
    for (option, number) in [("--flops", usage.flops), ("--tokens", usage.tokens)] {
        if number.is_some_and(|number| !(number.is_finite() && number > 0.)) {
            return Err(Error::Input(format!("{option} must be a positive number")));
        }
    }
    match lengths.find(|&t| (config.learned_positions && t > room) || t.saturating_mul(batch_size) > limit) {
        Some(t) if t.saturating_mul(batch_size) > limit => {
            Err(Error::Input(format!("{batch_size} sequences of {t} tokens: more than {limit} tokens per batch")))
        }
        Some(t) => Err(Error::Input(format!("sequences of {t} tokens: the model has {room} positions"))),
        None => Ok(()),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (count, batch, seq_len) = (&self.parameters, self.batch_size, self.seq_len);
        writeln!(f, "{} ({}): {} parameters", self.model, self.model_type, grouped(self.total))?;
        if self.active < self.total {
            writeln!(f, "active per token: {} ({})", grouped(self.active), percent(self.active, self.total))?;
        }
        let parts = [
            ("embeddings", count.embedding),
            ("attention", count.attention),
            ("feed-forward", count.mlp),
            ("routers", count.routers),
            ("experts", count.experts),
            ("  active per token", count.active_experts),
            ("norms", count.norms),
            ("head", count.head),
            ("  tied to the embedding", count.tied),
        ];
        writeln!(f)?;
        for (name, number) in parts.into_iter().filter(|(_, number)| *number > 0) {
            writeln!(f, "{name:<24}{:>20}{:>9}", grouped(number), percent(number, self.total))?;
        }

        writeln!(f, "\nInference memory with an f32 KV cache, {}, by context length:", sequences(batch))?;
        write!(f, "{:<8}{:>12}", "dtype", "weights")?;
        for context in &self.contexts {
            write!(f, "{:>12}", format!("+ {}", context.tokens))?;
        }
        writeln!(f)?;
        for serving in &self.serving {
            write!(f, "{:<8}{:>12}", serving.dtype, bytes(serving.weights))?;
            for &total in &serving.with_cache {
                write!(f, "{:>12}", bytes(total))?;
            }
            writeln!(f)?;
        }
        write!(f, "{:<8}{:>12}", "cache", "")?;
        for context in &self.contexts {
            write!(f, "{:>12}", bytes(context.kv_cache))?;
        }

        writeln!(f, "\n\nTraining memory with AdamW, {} of {seq_len} tokens:", sequences(batch))?;
        writeln!(
            f,
            "{:<20}{:>11}{:>11}{:>11}{:>13}{:>11}{:>11}",
            "compute dtype", "weights", "gradients", "moments", "activations", "working", "total"
        )?;
        for training in &self.training {
            let TrainingMemory { weights, gradients, moments, activations, working } = training.memory;
            let suffix = if training.activation_checkpointing { ", checkpointed" } else { "" };
            let [weights, gradients, moments, activations, working, total] =
                [weights, gradients, moments, activations, working, training.total].map(bytes);
            writeln!(
                f,
                "{:<20}{weights:>11}{gradients:>11}{moments:>11}{activations:>13}{working:>11}{total:>11}",
                format!("{}{suffix}", training.precision)
            )?;
        }

        let Flops { matrices, attention, head } = self.forward;
        writeln!(f, "\nFLOPs per token at sequence length {seq_len}:")?;
        let training = |checkpointed| self.forward.training(checkpointed);
        for (name, number) in [
            ("matrices", matrices),
            ("attention", attention),
            ("head", head),
            ("forward", self.forward_flops),
            ("training, 3 x forward", training(false)),
            ("training, checkpointed", training(true)),
        ] {
            writeln!(f, "{name:<24}{:>12}", scaled(number, "FLOP"))?;
        }
        self.time.as_ref().map_or(Ok(()), |time| time.fmt(f))
    }
}

impl Time {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "\nAt {} sustained:", scaled(self.flops_per_second, "FLOP/s"))?;
        for (name, per_second) in
            [("prefill", self.forward_tokens_per_second), ("training", self.training_tokens_per_second)]
        {
            writeln!(f, "{name:<24}{:>12}", format!("{} tokens/s", decimal(per_second)))?;
        }
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

    fn report(model: &str, usage: &Usage) -> Report {
        Report::of(model, usage).unwrap()
    }

    fn usage() -> Usage {
        Usage { batch_size: 1, ..Usage::default() }
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

    #[test]
    fn training_time_is_flops_divided_by_speed() {
        let usage = Usage { flops: Some(1e15), tokens: Some(300e9), seq_len: Some(2048), ..usage() };
        let report = report("gpt-3-175b", &usage);
        let time = report.time.as_ref().unwrap();
        let days = time.training_seconds.unwrap() / 86400.;
        // 3640 petaflop/s-days without attention: table D.1 of arXiv 2005.14165.
        assert!((days / 3640. - 1.).abs() < 0.04, "{days}");
        let per_second = time.training_tokens_per_second;
        assert!((per_second * time.training_seconds.unwrap() / 300e9 - 1.).abs() < 1e-12);
    }

    #[test]
    fn tables_and_json_agree() {
        let report = report("qwen3-30b-a3b", &Usage { contexts: vec![4096], flops: Some(1e12), ..usage() });
        let text = report.to_string();
        for part in ["30,532,122,624", "2048", "+ 4096", "q4_k", "checkpointed", "tokens/s", "active per token"] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        let json: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        assert_eq!(json["total"], 30_532_122_624u64);
        assert_eq!(json["contexts"][0]["kv_cache"], 2 * 48 * 4096 * 512 * 4);
        let (weights, with) = (&json["serving"][1]["weights"], &json["serving"][1]["with_cache"][0]);
        assert_eq!(with.as_u64().unwrap() - weights.as_u64().unwrap(), 2 * 48 * 4096 * 512 * 4);
        assert_eq!(json["training"].as_array().unwrap().len(), 4);
    }

    #[test]
    fn a_folder_is_read_by_its_config() {
        let dir = tempfile::tempdir().unwrap();
        let config = ModelConfig::default().validated("test").unwrap();
        let path = dir.path().join("config.json");
        for head in [Head::LanguageModel, Head::Sequence] {
            let json = llm_model::families::to_json(&config, head).unwrap();
            std::fs::write(&path, json.to_string()).unwrap();
            let folder = report(dir.path().to_str().unwrap(), &usage());
            assert_eq!(folder.total, ParamCount::of(&config, head).total());
            assert_eq!(report(path.to_str().unwrap(), &usage()).serving, folder.serving);
        }
    }

    #[test]
    fn invalid_input_is_an_error() {
        let message = |model: &str, usage: &Usage| Report::of(model, usage).unwrap_err().to_string();
        assert!(message("llama-9", &usage()).contains("llama-3-8b"));
        assert!(message("gpt2", &Usage { seq_len: Some(1025), ..usage() }).contains("1024 positions"));
        assert!(message("gpt2", &Usage { contexts: vec![2000], ..usage() }).contains("1024 positions"));
        assert!(message("gpt2", &Usage { flops: Some(0.), ..usage() }).contains("--flops"));
        assert!(message("llama-3-8b", &Usage { batch_size: u64::MAX, ..usage() }).contains("tokens per batch"));
    }
}
