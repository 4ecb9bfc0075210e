//! Compares the estimated memory of a training step with the allocator.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use llm_kernels::Precision;
use llm_model::cost::{TrainingMemory, TrainingShape};
use llm_model::{
    Activation, AttentionBias, Batch, ExpertsConfig, Head, Model, ModelConfig, ModelType, NormKind, NormPlacement,
    QkNorm,
};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// A decoder with activations larger than its weights, and with different sizes for all parts.
fn config() -> ModelConfig {
    ModelConfig {
        vocab_size: 1500,
        hidden_size: 96,
        intermediate_size: 320,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 32,
        ..ModelConfig::default()
    }
}

/// Measured bytes: saved by the forward for the backward, and the peak on top of the weights.
fn measured(config: &ModelConfig, shape: &TrainingShape) -> (f64, f64) {
    let model = Model::init(config.clone(), Head::LanguageModel, 1).unwrap();
    let mut model = model.in_precision(shape.precision).unwrap();
    if shape.checkpointed {
        model.checkpoint_activations();
    }
    let tokens = shape.batch_size * shape.seq_len;
    let ids: Vec<u32> = (0..tokens as u32).map(|i| i * 7919 % config.vocab_size as u32).collect();
    let labels: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let mut result = (0., 0.);
    // The first step allocates the matmul buffers of the threads.
    for _ in 0..2 {
        let batch = Batch::from_flat(&ids, shape.seq_len as usize).unwrap();
        let before = MEMORY.current_usage();
        let since = |bytes: usize| bytes as f64 - before as f64;
        let (hidden, routing) = model.hidden_and_routing(&batch).unwrap();
        let mut loss = model.cross_entropy(&hidden.flatten(0, 1).unwrap(), &labels).unwrap();
        if let Some(routing) = routing {
            loss = (loss + routing.loss).unwrap();
        }
        drop(hidden);
        let saved = since(MEMORY.current_usage());
        MEMORY.reset_peak_usage();
        let gradients = (loss.backward().unwrap(), model.take_recomputed_gradients());
        result = (saved, since(MEMORY.peak_usage()));
        drop(gradients);
    }
    result
}

#[test]
fn estimated_training_memory_matches_the_allocator() {
    if llm_kernels::skip_on_reference_path("the estimate is for the fused operations") {
        return;
    }
    let gpt2 = ModelConfig {
        model_type: ModelType::Gpt2,
        norm: NormKind::Layer,
        learned_positions: true,
        attention_bias: AttentionBias::All,
        mlp_bias: true,
        gated_mlp: false,
        hidden_act: Activation::GeluPytorchTanh,
        num_key_value_heads: 4,
        head_dim: 24,
        ..config()
    };
    let gemma = ModelConfig {
        model_type: ModelType::Gemma2,
        norm: NormKind::RmsPlusOne,
        norm_placement: NormPlacement::Sandwich,
        hidden_act: Activation::GeluPytorchTanh,
        scale_embeddings: true,
        sliding_window: Some(40),
        layer_types: vec![llm_model::LayerType::SlidingAttention, llm_model::LayerType::FullAttention]
            .into_iter()
            .cycle()
            .take(3)
            .collect(),
        query_pre_attn_scalar: Some(32.),
        attn_logit_softcapping: Some(50.),
        final_logit_softcapping: Some(30.),
        ..config()
    };
    let experts = ExpertsConfig { moe_intermediate_size: 160, num_experts_per_tok: 2, ..ExpertsConfig::default() };
    let experts = ModelConfig {
        model_type: ModelType::Qwen3Moe,
        qk_norm: Some(QkNorm::Head),
        experts: Some(experts),
        ..config()
    };
    let biased = ModelConfig { attention_bias: AttentionBias::All, mlp_bias: true, ..config() };
    let untied = ModelConfig { tie_word_embeddings: false, ..config() };
    let mut wrong = Vec::new();
    for (name, config) in [
        ("llama", config()),
        ("untied", untied),
        ("biased", biased),
        ("gpt2", gpt2),
        ("gemma2", gemma),
        ("experts", experts),
    ] {
        let config = config.validated(name).unwrap();
        for (checkpointed, precision) in
            [(false, Precision::F32), (true, Precision::F32), (false, Precision::Bf16), (true, Precision::Bf16)]
        {
            let shape = TrainingShape { batch_size: 6, seq_len: 256, checkpointed, precision };
            let memory = TrainingMemory::of(&config, Head::LanguageModel, &shape);
            let (saved, peak) = measured(&config, &shape);
            let saved_ratio = memory.activations as f64 / saved;
            let peak_ratio = (memory.total() - memory.weights - memory.moments) as f64 / peak;
            println!(
                "{name} {checkpointed} {precision:?}: saved {saved} x {saved_ratio:.4}, peak {peak} x {peak_ratio:.4}"
            );
            // The saved tensors are exact except graph nodes and spare capacity of the rotary tables: 0.1 MB of at least
            // 4 MB. The working memory is an estimate.
            if !(0.98..1.001).contains(&saved_ratio) || !(0.9..1.1).contains(&peak_ratio) {
                wrong.push((name, checkpointed, precision, saved_ratio, peak_ratio));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
