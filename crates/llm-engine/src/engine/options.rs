//! Options of the engine.

use std::time::Duration;

use llm_model::{KvDtype, KvPool, ModelConfig};

use crate::scheduler::Budget;

/// Options of [`crate::Engine::start`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineOptions {
    /// Bytes for the keys and values of all requests together, which take memory when they are first used; none: what four answers of
    /// the context length need, at least 1 GiB and at most a quarter of the free memory. More than [`Self::max_running`] answers can
    /// need is not used. Default none.
    pub kv_memory: Option<u64>,
    /// The dtype of keys and values. Default bf16.
    pub kv_dtype: KvDtype,
    /// How many answers are generated at a time. Default 64.
    pub max_running: usize,
    /// How many requests may wait; more are refused with [`crate::SubmitError::Busy`]. Default 256.
    pub max_queue: usize,
    /// How many prompt tokens the waiting requests may have together. A longer prompt is accepted if nothing waits. Default 262144.
    pub max_queued_tokens: usize,
    /// While answers are generated, prompts of other requests are computed in pieces, so that a step takes about this long. Default
    /// 50 milliseconds.
    pub max_step: Duration,
    /// A request whose events are not received for this long ends. Default 30 seconds.
    pub stall_timeout: Duration,
    /// Whether equal beginnings of prompts are computed once. Default true.
    pub prefix_cache: bool,
    /// Keys and values in f32, and prompts in pieces that do not depend on time or load, so that what else runs cannot change an
    /// answer. Default false.
    pub deterministic: bool,
    /// Speculative decoding: how many tokens are drafted at a time, by the draft model ([`crate::Engine::start_with_draft`]) or by
    /// [`Self::prompt_lookup`]; 0: none. Default 3.
    pub draft_tokens: usize,
    /// Without a draft model, draft the tokens that followed the last ones earlier in the text. Default false.
    pub prompt_lookup: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            kv_memory: None,
            kv_dtype: KvDtype::Bf16,
            max_running: 64,
            max_queue: 256,
            max_queued_tokens: 1 << 18,
            max_step: Duration::from_millis(50),
            stall_timeout: Duration::from_secs(30),
            prefix_cache: true,
            deterministic: false,
            draft_tokens: 3,
            prompt_lookup: false,
        }
    }
}

/// The least memory for keys and values by default: 1 GiB.
const KV_MEMORY: u64 = 1 << 30;

impl EngineOptions {
    /// The dtype of keys and values.
    pub(super) fn dtype(&self) -> KvDtype {
        if self.deterministic { KvDtype::F32 } else { self.kv_dtype }
    }

    /// The number of pages of the KV cache, each with the keys and values of the draft model too.
    pub(super) fn pages(&self, config: &ModelConfig, draft: Option<&ModelConfig>) -> usize {
        let context = config.max_position_embeddings.div_ceil(KvPool::PAGE);
        let bytes = |config| KvPool::page_bytes(config, self.dtype());
        let page = (bytes(config) + draft.map_or(0, bytes)).max(1) as u64;
        let fit = |bytes: u64| usize::try_from(bytes / page).unwrap_or(usize::MAX);
        match self.kv_memory {
            Some(bytes) => fit(bytes),
            None => {
                let wanted = KV_MEMORY.max(4 * context as u64 * page);
                fit(free_memory().map_or(wanted, |free| wanted.min(free / 4)))
            }
        }
        .min(context.saturating_mul(self.max_running))
    }
}

/// The memory that can be used without swapping, in bytes; none on systems other than Linux.
pub(crate) fn free_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The measured speed of the model, which decides how much of a prompt fits a step.
#[derive(Debug)]
pub(super) struct Speed {
    /// Tokens of prompts per second.
    prefill: f64,
    /// Seconds of a step without prompts.
    decode: f64,
}

/// Prompt tokens in a step without generating answers, and the limits beside them.
const ALONE: usize = 512;
const BESIDE: (usize, usize) = (16, 512);

impl Speed {
    /// A guess until it is measured.
    pub fn new() -> Self {
        Self { prefill: 1000., decode: 0. }
    }

    /// Adds the time of a step with prompt tokens and rows of generating answers.
    pub fn observe(&mut self, prompt_tokens: usize, decodes: bool, time: Duration) {
        let time = time.as_secs_f64();
        if prompt_tokens == 0 {
            self.decode += 0.2 * (time - self.decode);
        } else if prompt_tokens >= BESIDE.0 {
            let own = (time - if decodes { self.decode } else { 0. }).max(time / 4.).max(1e-6);
            self.prefill += 0.2 * (prompt_tokens as f64 / own - self.prefill);
        }
    }

    /// The prompt tokens of the next step.
    pub fn budget(&self, options: &EngineOptions) -> Budget {
        if options.deterministic {
            return Budget { beside_decode: KvPool::PAGE, alone: KvPool::PAGE, whole_pages: true };
        }
        let max = options.max_step.as_secs_f64();
        let time = (max - self.decode).max(max / 4.);
        let beside_decode = ((time * self.prefill) as usize).clamp(BESIDE.0, BESIDE.1);
        Budget { beside_decode, alone: ALONE, whole_pages: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_of_prompts_follow_the_measured_speed() {
        let options = EngineOptions::default();
        let mut speed = Speed::new();
        assert_eq!(speed.budget(&options).beside_decode, 50);
        for _ in 0..50 {
            speed.observe(0, true, Duration::from_millis(10));
            speed.observe(80, true, Duration::from_millis(30)); // 4000 per second beside the decode rows
        }
        assert!(speed.budget(&options).beside_decode.abs_diff(160) <= 1, "40 of 50 ms");
        (0..100).for_each(|_| speed.observe(0, true, Duration::from_secs(1)));
        assert!((16..=50).contains(&speed.budget(&options).beside_decode), "a slow model also makes progress");
        let fixed = EngineOptions { deterministic: true, ..options };
        assert_eq!(speed.budget(&fixed), Speed::new().budget(&fixed));
    }

    #[test]
    fn the_pool_has_the_size_that_was_asked_for_and_no_more_than_is_useful() {
        let config = ModelConfig {
            max_position_embeddings: 640,
            num_hidden_layers: 3,
            num_key_value_heads: 2,
            head_dim: 8,
            ..ModelConfig::default()
        };
        let page = KvPool::page_bytes(&config, KvDtype::Bf16) as u64;
        let options = EngineOptions { kv_memory: Some(7 * page + 1), ..EngineOptions::default() };
        assert_eq!(options.pages(&config, None), 7);
        assert_eq!(EngineOptions { deterministic: true, ..options.clone() }.pages(&config, None), 3, "f32");
        let options = EngineOptions { kv_memory: Some(u64::MAX), max_running: 3, ..options };
        assert_eq!(options.pages(&config, None), 30);
    }
}
