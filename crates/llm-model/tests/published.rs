//! The `config.json` of published checkpoints and their parameter counts on the hub. A wrong shape or default changes the
//! count.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use llm_model::families::from_json;
use llm_model::{Head, LayerType, ParamCount, RopeScaling};
use serde_json::{Value, json};

#[allow(clippy::too_many_lines, reason = "a table")]
fn published() -> Vec<(&'static str, usize, Value)> {
    vec![
        (
            "openai-community/gpt2",
            124_439_808,
            json!({
                "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
                "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
                "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12,
                "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": null, "vocab_size": 50257
            }),
        ),
        (
            "EleutherAI/pythia-70m",
            70_426_624,
            json!({
                "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
                "hidden_size": 512, "initializer_range": 0.02, "intermediate_size": 2048, "layer_norm_eps": 1e-05,
                "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 8,
                "num_hidden_layers": 6, "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": false,
                "torch_dtype": "float16", "use_cache": true, "use_parallel_residual": true, "vocab_size": 50304
            }),
        ),
        (
            "meta-llama/Llama-3.2-1B",
            1_235_814_400,
            json!({
                "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
                "bos_token_id": 128_000, "eos_token_id": 128_001, "head_dim": 64, "hidden_act": "silu",
                "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
                "max_position_embeddings": 131_072, "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32,
                "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
                "rope_scaling": {
                    "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                    "original_max_position_embeddings": 8192, "rope_type": "llama3"
                },
                "rope_theta": 500_000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "vocab_size": 128_256
            }),
        ),
        (
            "mistralai/Mistral-7B-v0.1",
            7_241_732_096,
            json!({
                "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
                "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
                "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
                "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
                "sliding_window": 4096, "tie_word_embeddings": false, "vocab_size": 32000
            }),
        ),
        (
            "mistralai/Mixtral-8x7B-v0.1",
            46_702_792_704,
            json!({
                "architectures": ["MixtralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
                "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
                "max_position_embeddings": 32768, "model_type": "mixtral", "num_attention_heads": 32,
                "num_experts_per_tok": 2, "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8,
                "output_router_logits": false, "rms_norm_eps": 1e-05, "rope_theta": 1_000_000.0,
                "router_aux_loss_coef": 0.02, "sliding_window": null, "tie_word_embeddings": false, "vocab_size": 32000
            }),
        ),
        (
            "Qwen/Qwen2.5-0.5B",
            494_032_768,
            json!({
                "architectures": ["Qwen2ForCausalLM"], "bos_token_id": 151_643, "eos_token_id": 151_643,
                "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
                "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2",
                "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
                "rope_theta": 1_000_000.0, "sliding_window": 32768, "tie_word_embeddings": true, "use_mrope": false,
                "use_sliding_window": false, "vocab_size": 151_936
            }),
        ),
        (
            "Qwen/Qwen3-0.6B",
            596_049_920,
            json!({
                "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "bos_token_id": 151_643,
                "eos_token_id": 151_645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
                "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960,
                "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
                "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1_000_000,
                "sliding_window": null, "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151_936
            }),
        ),
        (
            "Qwen/Qwen3-30B-A3B",
            30_532_122_624,
            json!({
                "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "bos_token_id": 151_643,
                "decoder_sparse_step": 1, "eos_token_id": 151_645, "head_dim": 128, "hidden_act": "silu",
                "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 6144,
                "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [],
                "model_type": "qwen3_moe", "moe_intermediate_size": 768, "norm_topk_prob": true,
                "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
                "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1_000_000.0,
                "router_aux_loss_coef": 0.001, "sliding_window": null, "tie_word_embeddings": false,
                "use_sliding_window": false, "vocab_size": 151_936
            }),
        ),
        (
            "HuggingFaceTB/SmolLM3-3B",
            3_075_098_624,
            json!({
                "architectures": ["SmolLM3ForCausalLM"], "attention_bias": false, "bos_token_id": 128_000,
                "eos_token_id": 128_012, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
                "intermediate_size": 11008, "max_position_embeddings": 65536, "max_window_layers": 28,
                "mlp_bias": false, "model_type": "smollm3", "no_rope_layer_interval": 4, "num_attention_heads": 16,
                "num_hidden_layers": 36, "num_key_value_heads": 4, "pad_token_id": 128_004, "rms_norm_eps": 1e-06,
                "rope_scaling": null, "rope_theta": 5_000_000.0, "sliding_window": null, "use_sliding_window": false,
                "vocab_size": 128_256
            }),
        ),
        (
            "allenai/OLMo-2-0425-1B",
            1_484_916_736,
            json!({
                "architectures": ["Olmo2ForCausalLM"], "attention_bias": false, "eos_token_id": 100_257,
                "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
                "max_position_embeddings": 4096, "model_type": "olmo2", "num_attention_heads": 16,
                "num_hidden_layers": 16, "num_key_value_heads": 16, "pad_token_id": 100_277, "rms_norm_eps": 1e-06,
                "rope_scaling": null, "rope_theta": 500_000, "tie_word_embeddings": false, "vocab_size": 100_352
            }),
        ),
        (
            "microsoft/Phi-3-mini-4k-instruct",
            3_821_079_552,
            json!({
                "architectures": ["Phi3ForCausalLM"], "attention_bias": false, "bos_token_id": 1,
                "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072,
                "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 4096,
                "model_type": "phi3", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
                "original_max_position_embeddings": 4096, "pad_token_id": 32000, "rms_norm_eps": 1e-05,
                "rope_scaling": null, "rope_theta": 10000.0, "sliding_window": 2047, "tie_word_embeddings": false,
                "vocab_size": 32064
            }),
        ),
        (
            "google/gemma-2-2b",
            2_614_341_888,
            json!({
                "architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attn_logit_softcapping": 50.0,
                "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
                "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
                "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "initializer_range": 0.02,
                "intermediate_size": 9216, "max_position_embeddings": 8192, "model_type": "gemma2",
                "num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4, "pad_token_id": 0,
                "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096,
                "vocab_size": 256_000
            }),
        ),
        (
            "google/gemma-3-1b-pt",
            999_885_952,
            json!({
                "architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attn_logit_softcapping": null,
                "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
                "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
                "hidden_size": 1152, "initializer_range": 0.02, "intermediate_size": 6912,
                "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4,
                "num_hidden_layers": 26, "num_key_value_heads": 1, "pad_token_id": 0, "query_pre_attn_scalar": 256,
                "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000, "rope_scaling": null, "rope_theta": 1_000_000,
                "sliding_window": 512, "sliding_window_pattern": 6, "vocab_size": 262_144
            }),
        ),
    ]
}

#[test]
fn published_configurations_have_their_published_sizes() {
    for (name, parameters, json) in published() {
        let described = from_json(&json, name).unwrap();
        assert_eq!(described.head, Head::LanguageModel);
        assert_eq!(ParamCount::of(&described.config, Head::LanguageModel).total(), parameters, "{name}");
    }
}

#[test]
fn missing_keys_of_old_files_have_the_defaults_of_transformers() {
    let config = |name: &str| {
        let all = published();
        let (name, _, json) = all.iter().find(|(known, ..)| known.ends_with(name)).unwrap();
        from_json(json, name).unwrap().config
    };
    let smol = config("SmolLM3-3B");
    assert_eq!(smol.layers_without_rope, [3, 7, 11, 15, 19, 23, 27, 31, 35]);
    assert!(smol.tie_word_embeddings && config("gpt2").tie_word_embeddings && config("gemma-2-2b").tie_word_embeddings);
    let gemma = config("gemma-3-1b-pt");
    let full: Vec<usize> = (0..26).filter(|&layer| gemma.layer_types[layer] == LayerType::FullAttention).collect();
    assert_eq!(full, [5, 11, 17, 23]);
    assert_eq!((gemma.rope_theta, gemma.rope_local_theta), (1e6, Some(1e4)));
    assert_eq!(config("gemma-2-2b").window_of(0), Some(4096));
    assert_eq!(config("gemma-2-2b").window_of(1), None);
    assert_eq!((config("pythia-70m").rotary_dim(), config("pythia-70m").head_dim), (16, 64));
    assert_eq!(config("Qwen2.5-0.5B").sliding_window, None);
    assert_eq!(config("gpt2").intermediate_size, 3072);
}

#[test]
fn early_phi_3_files_with_rope_type_su_are_read() {
    let all = published();
    let (name, _, json) = all.iter().find(|(known, ..)| known.contains("Phi-3")).unwrap();
    let mut json = json.clone();
    json["max_position_embeddings"] = json!(131_072);
    let factors = vec![1.5; 48];
    json["rope_scaling"] = json!({"type": "su", "short_factor": factors, "long_factor": factors});
    let RopeScaling::LongRope { original_max_position_embeddings, .. } =
        from_json(&json, name).unwrap().config.rope_scaling
    else {
        panic!("not longrope")
    };
    assert_eq!(original_max_position_embeddings, 4096);
}

/// Values that are valid in transformers and that this decoder does not support; the error names the key.
#[test]
fn unsupported_values_are_rejected_by_key() {
    let longrope = json!({"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]});
    let local = json!({"sliding_attention": {"rope_type": "linear", "factor": 2.0}});
    let factors = vec![1.0; 48];
    let other_length = json!({
        "type": "longrope", "short_factor": factors, "long_factor": factors, "original_max_position_embeddings": 8192
    });
    for (name, key, value, named) in [
        ("gpt2", "scale_attn_by_inverse_layer_idx", json!(true), "scale_attn_by_inverse_layer_idx"),
        ("gpt2", "activation_function", json!("relu"), "activation_function"),
        ("pythia-70m", "rotary_pct", json!(0.15), "partial_rotary_factor"),
        ("Llama-3.2-1B", "rope_scaling", json!({"rope_type": "llama3", "factor": 8.0}), "low_freq_factor"),
        ("Mistral-7B-v0.1", "rope_parameters", json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        ("Mistral-7B-v0.1", "layer_types", json!(["full_attention"]), "layer_types"),
        ("Mixtral-8x7B-v0.1", "num_experts_per_tok", json!(9), "num_experts_per_tok"),
        ("Qwen2.5-0.5B", "layer_types", json!(["chunked_attention"]), "chunked_attention"),
        ("Qwen3-30B-A3B", "decoder_sparse_step", json!(0), "decoder_sparse_step"),
        ("SmolLM3-3B", "no_rope_layers", json!([1, 0]), "no_rope_layers"),
        ("Phi-3-mini-4k-instruct", "rope_scaling", json!({"type": "linear", "factor": 2.0}), "rope_scaling"),
        ("Phi-3-mini-4k-instruct", "rope_scaling", longrope, "short_factor"),
        ("Phi-3-mini-4k-instruct", "rope_scaling", other_length, "original_max_position_embeddings"),
        ("gemma-2-2b", "use_bidirectional_attention", json!(true), "use_bidirectional_attention"),
        ("gemma-3-1b-pt", "rope_parameters", local, "sliding_attention"),
        ("gemma-3-1b-pt", "final_logit_softcapping", json!(-1.0), "final_logit_softcapping"),
    ] {
        let all = published();
        let (full, _, json) = all.iter().find(|(known, ..)| known.ends_with(name)).unwrap();
        let mut json = json.clone();
        json[key] = value;
        let message = from_json(&json, full).unwrap_err().to_string();
        assert!(message.starts_with(full) && message.contains(named), "{name}: {message}");
    }
}
