//! What a training step is said to hold is what the allocator counts.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use llm_kernels::Precision;
use llm_model::cost::{TrainingMemory, TrainingShape};
use llm_model::{
    Activation, AttentionBias, Batch, ExpertsConfig, Head, Model, ModelConfig, ModelType, NormKind, NormPlacement,
    QkNorm,
};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// A decoder whose activations are most of what it holds, and whose parts all have sizes of their own.
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

/// Bytes that the forward left for the backward, and the most that stood at a time beside weights.
fn measured(config: &ModelConfig, shape: &TrainingShape) -> (f64, f64) {
    let model = Model::init(config.clone(), Head::LanguageModel, 1).unwrap();
    let mut model = model.in_precision(shape.precision).unwrap();
    if shape.checkpointed {
        model.checkpoint_activations();
    }
    let tokens = shape.batch_size * shape.seq_len;
    let ids: Vec<u32> = (0..tokens as u32).map(|i| i * 7919 % config.vocab_size as u32).collect();
    let labels: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let mut figures = (0., 0.);
    // The first step fills the buffers that threads keep for their products.
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
        let kept = since(MEMORY.current_usage());
        MEMORY.reset_peak_usage();
        let gradients = (loss.backward().unwrap(), model.take_recomputed_gradients());
        figures = (kept, since(MEMORY.peak_usage()));
        drop(gradients);
    }
    figures
}

#[test]
fn a_training_step_holds_what_is_said_of_it() {
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
            let said = TrainingMemory::of(&config, Head::LanguageModel, &shape);
            let (kept, peak) = measured(&config, &shape);
            let (of_kept, of_peak) =
                (said.activations as f64 / kept, (said.activations + said.gradients + said.working) as f64 / peak);
            println!("{name} {checkpointed} {precision:?}: kept {kept} x {of_kept:.4}, peak {peak} x {of_peak:.4}");
            // What is kept is counted, but for the graph's own nodes and the room that the tables of the rotation grew
            // into: 0.1 MB of the 4 MB that are the least here. The largest step is estimated.
            if !(0.98..1.001).contains(&of_kept) || !(0.9..1.1).contains(&of_peak) {
                wrong.push((name, checkpointed, precision, of_kept, of_peak));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
