//! Estimated cost of a model from its configuration, for `llm-train params`. The formulas are in [`llm_model::cost`].

mod display;

use std::path::Path;

use llm_kernels::Precision;
use llm_model::cost::{Flops, TrainingMemory, TrainingShape, kv_cache_bytes, muon_bytes, weight_bytes};
use llm_model::presets::{PRESETS, preset};
use llm_model::{BlockFormat, Head, ModelConfig, ParamCount, WeightDtype, read_config};
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
    muon_moments: u64,
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
    dtype: WeightDtype,
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

/// The dtypes of a model in memory, largest first.
const DTYPES: [WeightDtype; 6] = [
    WeightDtype::F32,
    WeightDtype::Bf16,
    WeightDtype::Quantized(BlockFormat::Q8_0),
    WeightDtype::Quantized(BlockFormat::Q6_K),
    WeightDtype::Quantized(BlockFormat::Q4_K),
    WeightDtype::Quantized(BlockFormat::Q4_0),
];

/// The configuration and head from a `config.json`, a folder with one, or a preset.
fn find(model: &str) -> Result<(ModelConfig, Head)> {
    if let Some(config) = preset(model) {
        return Ok((config.validated(model)?, Head::LanguageModel));
    }
    let path = Path::new(model);
    if !path.exists() {
        let known = PRESETS.join(", ");
        return Err(Error::MissingFile(format!("{model}: no such file, folder or known model; known models: {known}")));
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
        let serving = DTYPES.map(|dtype| {
            let weights = weight_bytes(&config, head, dtype);
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
            muon_moments: muon_bytes(&config, head),
            forward: flops,
            forward_flops: flops.forward(),
            time: usage.flops.map(|per_second| Time::of(&flops, per_second, usage.tokens)),
        })
    }

    /// The report as JSON.
    pub fn json(&self) -> Result<String> {
        let json = serde_json::to_string_pretty(self).map_err(|e| Error::Internal(format!("{}: {e}", self.model)))?;
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
            return Err(Error::BadRequest(format!("{option} must be a positive number")));
        }
    }
    match lengths.find(|&t| (config.learned_positions && t > room) || t.saturating_mul(batch_size) > limit) {
        Some(t) if t.saturating_mul(batch_size) > limit => {
            Err(Error::TooLong(format!("{batch_size} sequences of {t} tokens: more than {limit} tokens per batch")))
        }
        Some(t) => Err(Error::TooLong(format!("sequences of {t} tokens: the model has {room} positions"))),
        None => Ok(()),
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
