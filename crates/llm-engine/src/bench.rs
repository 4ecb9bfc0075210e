//! Inference benchmark: prefill and decode throughput, and memory.

use std::time::Instant;

use llm_model::Model;
use serde::Serialize;

use crate::{Error, GenerateOptions, Result, Sampling, generate};

/// Results of the benchmark.
#[derive(Debug, Clone, Serialize)]
pub struct InferenceCost {
    /// Number of parameters of the model.
    pub parameters: usize,
    /// Prefill throughput, in prompt tokens per second; median over the rounds.
    pub prefill_tokens_per_second: f64,
    /// Decode throughput, in generated tokens per second; median over the rounds.
    pub decode_tokens_per_second: f64,
    /// Peak memory of the process, in bytes; none if the system does not report it.
    pub peak_memory: Option<u64>,
}

/// Measures prefill of `prompt_tokens` and greedy decoding of `new_tokens` at batch size 1, `rounds` times.
pub fn bench(model: &Model, prompt_tokens: usize, new_tokens: usize, rounds: usize) -> Result<InferenceCost> {
    for (name, value, least, expected) in [
        ("prompt_tokens", prompt_tokens, 1, "at least 1"),
        ("new_tokens", new_tokens, 2, "at least 2"),
        ("rounds", rounds, 1, "at least 1"),
    ] {
        if value < least {
            return Err(Error::InvalidOption { name, value: value as f64, expected });
        }
    }
    let vocab = model.config().vocab_size as u32;
    let prompt: Vec<u32> = (0..prompt_tokens as u32).map(|i| i.wrapping_mul(2_654_435_761) % vocab).collect();
    let sampling = Sampling { temperature: 0., ..Sampling::default() };
    let options = GenerateOptions { max_new_tokens: new_tokens, stop_ids: Some(Vec::new()), sampling };
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let start = Instant::now();
        let mut first = None;
        let replies = generate(model, std::slice::from_ref(&prompt), &options, |_, _| {
            first.get_or_insert_with(Instant::now);
            true
        })?;
        let generated = replies[0].len();
        if generated < new_tokens {
            let context_length = model.config().max_position_embeddings;
            return Err(Error::BenchTooLong { prompt_tokens, new_tokens, context_length });
        }
        let first = first.unwrap_or(start);
        prefill.push((first - start).as_secs_f64() / prompt_tokens as f64);
        decode.push(first.elapsed().as_secs_f64() / (generated - 1) as f64);
    }
    Ok(InferenceCost {
        parameters: model.count().total(),
        prefill_tokens_per_second: 1. / median(prefill),
        decode_tokens_per_second: 1. / median(decode),
        peak_memory: peak_memory(),
    })
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Peak resident memory of the process, in bytes; none on systems other than Linux.
pub fn peak_memory() -> Option<u64> {
    memory("VmHWM:")
}

/// Anonymous resident memory of the process (without mapped files), in bytes; none on systems other than Linux.
pub fn anonymous_memory() -> Option<u64> {
    memory("RssAnon:")
}

fn memory(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use llm_model::{Head, ModelConfig};

    use super::*;

    #[test]
    fn throughput_is_positive_and_invalid_sizes_are_rejected() {
        let config = ModelConfig {
            vocab_size: 40,
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            max_position_embeddings: 32,
            ..ModelConfig::default()
        };
        let model = Model::init(config, Head::LanguageModel, 7).unwrap().frozen().unwrap();
        let cost = bench(&model, 8, 4, 2).unwrap();
        assert!(cost.prefill_tokens_per_second > 0. && cost.decode_tokens_per_second > 0.);
        assert_eq!(cost.parameters, model.count().total());
        assert!(bench(&model, 30, 4, 1).unwrap_err().to_string().contains("context length of 32"));
        assert!(bench(&model, 8, 1, 1).is_err());
    }
}
