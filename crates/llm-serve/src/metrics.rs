//! `/metrics` in the text format of Prometheus. No label has a text of a user.

use std::fmt;

use llm_engine::{Engine, EngineStats, Histogram as Durations};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// The metrics of a server.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    prompt_tokens: Histogram,
    generation_tokens: Histogram,
    rejected: Family<Reason, Counter>,
}

/// Why a request was rejected.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

impl Metrics {
    pub(crate) fn new(engine: Engine) -> Self {
        let mut registry = Registry::with_prefix("llm");
        let tokens = || Histogram::new(exponential_buckets(1., 2., 18));
        let (prompt_tokens, generation_tokens, rejected) = (tokens(), tokens(), Family::default());
        registry.register("request_prompt_tokens", "Prompt tokens of a request", prompt_tokens.clone());
        registry.register("request_generation_tokens", "Generated tokens of a request", generation_tokens.clone());
        registry.register("requests_rejected", "Requests that were refused, by reason", rejected.clone());
        registry.register_collector(Box::new(OfEngine(engine)));
        Self { registry, prompt_tokens, generation_tokens, rejected }
    }

    pub(crate) fn observe_prompt(&self, tokens: usize) {
        self.prompt_tokens.observe(tokens as f64);
    }

    pub(crate) fn observe_generation(&self, tokens: usize) {
        self.generation_tokens.observe(tokens as f64);
    }

    /// Counts a request that was answered with an error.
    pub(crate) fn reject(&self, status: axum::http::StatusCode) {
        let reason = match status.as_u16() {
            401 => "api_key",
            403 => "host",
            404 | 405 => "not_found",
            408 => "timeout",
            413 => "too_large",
            429 => "busy",
            503 => "shutting_down",
            500.. => "failed",
            _ => "invalid",
        };
        self.rejected.get_or_create(&Reason { reason }).inc();
    }

    /// The text for Prometheus.
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Reads the counters of the engine when the metrics are asked for.
#[derive(Debug)]
struct OfEngine(Engine);

impl Collector for OfEngine {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let stats = self.0.stats();
        let gauges = [
            ("requests_running", "Answers that are being generated", stats.running as f64),
            ("requests_waiting", "Requests that wait", stats.waiting as f64),
            (
                "kv_cache_usage_ratio",
                "Share of the pages of the KV cache in use",
                share(stats.pages_used, stats.pages_total),
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        for (name, help, value) in counters(&stats) {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        let help = "Answers that ended, by their reason";
        let mut family = encoder.encode_descriptor("request_success", help, None, MetricType::Counter)?;
        for (reason, count) in [("stop", stats.finished_stop), ("length", stats.finished_length)] {
            let labels = [("finish_reason", reason)];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        for (name, help, durations) in histograms(&stats) {
            let bounds = Durations::BOUNDS.into_iter().chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(durations.counts().iter().copied()).collect();
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            metric.encode_histogram::<[(&str, &str); 0]>(durations.sum(), durations.count(), &buckets, None)?;
        }
        Ok(())
    }
}

fn counters(stats: &EngineStats) -> [(&'static str, &'static str, u64); 9] {
    [
        ("prefix_cache_queries_tokens", "Prompt tokens that were looked up in the prefix cache", stats.prefix_queries),
        ("prefix_cache_hits_tokens", "Prompt tokens that were found in the prefix cache", stats.prefix_hits),
        ("prompt_tokens", "Prompt tokens of the requests that were started", stats.prompt_tokens),
        ("generation_tokens", "Generated tokens", stats.generated_tokens),
        ("requests_cancelled", "Requests whose client went away", stats.cancelled),
        ("requests_failed", "Requests that failed", stats.failed),
        ("preemptions", "Answers that were stopped to free pages and computed again later", stats.preemptions),
        ("spec_draft_tokens", "Tokens that were drafted by speculative decoding", stats.draft_tokens),
        ("spec_accepted_tokens", "Drafted tokens that were accepted", stats.accepted_tokens),
    ]
}

fn histograms(stats: &EngineStats) -> [(&'static str, &'static str, &Durations); 6] {
    [
        ("time_to_first_token_seconds", "Time from a request to its first token", &stats.time_to_first_token),
        ("inter_token_latency_seconds", "Time between the tokens of an answer", &stats.inter_token_latency),
        ("e2e_request_latency_seconds", "Time from a request to its end", &stats.request_latency),
        ("request_queue_time_seconds", "Time in the queue", &stats.queue_time),
        ("request_prefill_time_seconds", "Time from the start of a request to its first token", &stats.prefill_time),
        ("request_decode_time_seconds", "Time from the first token of a request to its end", &stats.decode_time),
    ]
}

fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0. } else { part as f64 / whole as f64 }
}
