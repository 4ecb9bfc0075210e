//! The GGUF architectures: a table with the names of keys and tensors per model family.

use serde_json::{Value as Json, json};

use crate::config::{Activation, AttentionBias, LayerType, NormKind, NormPlacement, QkNorm};
use crate::{ExpertsConfig, Head, ModelConfig, ModelType, Role, TensorSpec};

/// A GGUF architecture: its fixed settings, and the keys and tensor names of the file.
pub(crate) struct Architecture {
    /// The value of `general.architecture`, and the prefix of its keys.
    pub name: &'static str,
    /// The families written with this architecture; a file is read as the first one.
    pub model_types: &'static [ModelType],
    /// Whether the model has experts; one name can be used with and without experts.
    pub experts: bool,
    /// Whether the rows of each query and key head are interleaved. llama.cpp rotates pairs `(2i, 2i + 1)` in such an
    /// architecture; transformers rotates pairs `(i, i + d/2)`.
    pub interleaved: bool,
    /// The fixed settings of the architecture.
    base: fn() -> ModelConfig,
    /// Sets the fields that follow from the keys of a file.
    pub complete: fn(&mut ModelConfig),
    /// Keys in addition to those of all architectures.
    extra_keys: &'static [Key],
    /// Tensors of a block with another name than in [`PARTS`]. Tensors with the same name are fused, row by row.
    renames: &'static [(&'static str, &'static str)],
}

/// A key of a file, without the prefix `{architecture}.`, and the JSON pointer of its field in [`ModelConfig`].
pub(crate) type Key = (&'static str, &'static str);

/// Required keys.
pub(crate) const REQUIRED: [Key; 5] = [
    ("embedding_length", "/hidden_size"),
    ("block_count", "/num_hidden_layers"),
    ("feed_forward_length", "/intermediate_size"),
    ("context_length", "/max_position_embeddings"),
    ("attention.head_count", "/num_attention_heads"),
];

/// Optional keys of all architectures.
const OPTIONAL: [Key; 5] = [
    ("attention.head_count_kv", "/num_key_value_heads"),
    ("attention.key_length", "/head_dim"),
    ("attention.value_length", "/head_dim"),
    ("vocab_size", "/vocab_size"),
    ("rope.freq_base", "/rope_theta"),
];

const RMS_EPS: Key = ("attention.layer_norm_rms_epsilon", "/rms_norm_eps");
const LAYER_EPS: Key = ("attention.layer_norm_epsilon", "/rms_norm_eps");
const WINDOW: Key = ("attention.sliding_window", "/sliding_window");
const EXPERTS: Key = ("expert_count", "/experts/num_experts");
const EXPERTS_USED: Key = ("expert_used_count", "/experts/num_experts_per_tok");

/// Tensors outside the blocks.
const TENSORS: [(&str, &str); 4] = [
    ("model.embed_tokens", "token_embd"),
    ("model.embed_positions", "position_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
];

/// Tensors of a block; `*` is the index of an expert.
const PARTS: [(&str, &str); 17] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.experts.*.gate_proj", "ffn_gate_exps"),
    ("mlp.experts.*.up_proj", "ffn_up_exps"),
    ("mlp.experts.*.down_proj", "ffn_down_exps"),
];

const FUSED_QKV: [(&str, &str); 3] =
    [("self_attn.q_proj", "attn_qkv"), ("self_attn.k_proj", "attn_qkv"), ("self_attn.v_proj", "attn_qkv")];

const POST_NORM: (&str, &str) = ("post_attention_layernorm", "post_attention_norm");

const LLAMA: Architecture = Architecture {
    name: "llama",
    model_types: &[ModelType::Llama, ModelType::Mistral],
    experts: false,
    interleaved: true,
    base: ModelConfig::default,
    complete: |_| {},
    extra_keys: &[RMS_EPS],
    renames: &[],
};

/// All supported architectures.
pub(crate) const ALL: [&Architecture; 12] = [
    &LLAMA,
    &Architecture {
        model_types: &[ModelType::Mixtral],
        experts: true,
        base: || ModelConfig {
            model_type: ModelType::Mixtral,
            experts: Some(ExpertsConfig::default()),
            ..ModelConfig::default()
        },
        // "feed_forward_length" is the width of each expert.
        complete: |config| {
            if let Some(experts) = &mut config.experts {
                experts.moe_intermediate_size = config.intermediate_size;
            }
        },
        extra_keys: &[RMS_EPS, EXPERTS, EXPERTS_USED],
        ..LLAMA
    },
    &Architecture {
        name: "qwen2",
        model_types: &[ModelType::Qwen2],
        interleaved: false,
        base: || ModelConfig {
            model_type: ModelType::Qwen2,
            attention_bias: AttentionBias::Qkv,
            ..ModelConfig::default()
        },
        ..LLAMA
    },
    &Architecture {
        name: "qwen3",
        model_types: &[ModelType::Qwen3],
        interleaved: false,
        base: || ModelConfig { model_type: ModelType::Qwen3, qk_norm: Some(QkNorm::Head), ..ModelConfig::default() },
        ..LLAMA
    },
    &Architecture {
        name: "qwen3moe",
        model_types: &[ModelType::Qwen3Moe],
        experts: true,
        interleaved: false,
        base: || ModelConfig {
            model_type: ModelType::Qwen3Moe,
            qk_norm: Some(QkNorm::Head),
            experts: Some(ExpertsConfig::default()),
            ..ModelConfig::default()
        },
        extra_keys: &[RMS_EPS, EXPERTS, EXPERTS_USED, ("expert_feed_forward_length", "/experts/moe_intermediate_size")],
        ..LLAMA
    },
    &Architecture {
        name: "smollm3",
        model_types: &[ModelType::SmolLm3],
        base: || ModelConfig { model_type: ModelType::SmolLm3, ..ModelConfig::default() },
        // Every fourth layer has no rotary embedding.
        complete: |config| config.layers_without_rope = (3..config.num_hidden_layers).step_by(4).collect(),
        ..LLAMA
    },
    &Architecture {
        name: "olmo2",
        model_types: &[ModelType::Olmo2],
        interleaved: false,
        base: || ModelConfig {
            model_type: ModelType::Olmo2,
            qk_norm: Some(QkNorm::Whole),
            norm_placement: NormPlacement::Post,
            ..ModelConfig::default()
        },
        renames: &[POST_NORM],
        ..LLAMA
    },
    &Architecture {
        name: "phi3",
        model_types: &[ModelType::Phi3],
        interleaved: false,
        base: || ModelConfig { model_type: ModelType::Phi3, ..ModelConfig::default() },
        extra_keys: &[RMS_EPS, WINDOW],
        renames: &[FUSED_QKV[0], FUSED_QKV[1], FUSED_QKV[2], ("mlp.gate_proj", "ffn_up"), ("mlp.up_proj", "ffn_up")],
        ..LLAMA
    },
    &Architecture {
        name: "gemma2",
        model_types: &[ModelType::Gemma2],
        interleaved: false,
        // Defaults of llama.cpp: early files do not have these keys.
        base: || ModelConfig {
            model_type: ModelType::Gemma2,
            sliding_window: Some(4096),
            attn_logit_softcapping: Some(50.),
            final_logit_softcapping: Some(30.),
            ..gemma()
        },
        complete: |config| alternating(config, 2, 46),
        extra_keys: &[
            RMS_EPS,
            WINDOW,
            ("attn_logit_softcapping", "/attn_logit_softcapping"),
            ("final_logit_softcapping", "/final_logit_softcapping"),
        ],
        renames: &[POST_NORM],
        ..LLAMA
    },
    &Architecture {
        name: "gemma3",
        model_types: &[ModelType::Gemma3Text],
        interleaved: false,
        base: || ModelConfig {
            model_type: ModelType::Gemma3Text,
            qk_norm: Some(QkNorm::Head),
            rope_local_theta: Some(10_000.),
            ..gemma()
        },
        complete: |config| alternating(config, 6, 62),
        extra_keys: &[RMS_EPS, WINDOW],
        renames: &[POST_NORM],
        ..LLAMA
    },
    &Architecture {
        name: "gpt2",
        model_types: &[ModelType::Gpt2],
        interleaved: false,
        base: || ModelConfig {
            model_type: ModelType::Gpt2,
            learned_positions: true,
            hidden_act: Activation::GeluPytorchTanh,
            ..layer_normed()
        },
        extra_keys: &[LAYER_EPS],
        renames: &FUSED_QKV,
        ..LLAMA
    },
    &Architecture {
        name: "gptneox",
        model_types: &[ModelType::GptNeox],
        interleaved: false,
        base: || ModelConfig {
            model_type: ModelType::GptNeox,
            hidden_act: Activation::Gelu,
            parallel_residual: true,
            ..layer_normed()
        },
        extra_keys: &[LAYER_EPS, ("use_parallel_residual", "/parallel_residual")],
        renames: &FUSED_QKV,
        ..LLAMA
    },
];

fn layer_normed() -> ModelConfig {
    ModelConfig {
        norm: NormKind::Layer,
        attention_bias: AttentionBias::All,
        mlp_bias: true,
        gated_mlp: false,
        ..ModelConfig::default()
    }
}

fn gemma() -> ModelConfig {
    ModelConfig {
        norm: NormKind::RmsPlusOne,
        norm_placement: NormPlacement::Sandwich,
        hidden_act: Activation::GeluPytorchTanh,
        scale_embeddings: true,
        ..ModelConfig::default()
    }
}

/// Every `pattern`-th layer has full attention, the others have sliding windows. Scores are divided by `sqrt(head_dim)`,
/// except in the 27B model, which has no key for this: like llama.cpp, we recognise it by its number of layers.
fn alternating(config: &mut ModelConfig, pattern: usize, layers_of_27b: usize) {
    let kind = |layer: usize| match (layer + 1).is_multiple_of(pattern) {
        true => LayerType::FullAttention,
        false => LayerType::SlidingAttention,
    };
    config.layer_types = (0..config.num_hidden_layers).map(kind).collect();
    let of_27b = config.num_hidden_layers == layers_of_27b;
    let scalar = if of_27b { config.hidden_size / config.num_attention_heads.max(1) } else { config.head_dim };
    config.query_pre_attn_scalar = Some(scalar as f64);
}

/// A tensor of a file, and the decoder tensors that it contains, concatenated by row.
pub(crate) struct FileTensor {
    pub name: String,
    /// Row-major shape; GGUF stores the dimensions in reverse order.
    pub shape: Vec<usize>,
    pub parts: Vec<TensorSpec>,
}

impl Architecture {
    /// The fixed settings as JSON.
    pub fn base(&self) -> Json {
        json!((self.base)())
    }

    /// All keys of a file except those of rotary embeddings.
    pub fn keys(&self) -> impl Iterator<Item = Key> {
        REQUIRED.into_iter().chain(OPTIONAL).chain(self.extra_keys.iter().copied())
    }

    /// The tensors of a file, in order. The error is the name of a decoder tensor that has no GGUF name.
    pub fn layout(&self, config: &ModelConfig) -> Result<Vec<FileTensor>, String> {
        let mut layout: Vec<FileTensor> = Vec::new();
        for spec in config.tensor_specs(Head::LanguageModel) {
            let Some(theirs) = self.rename(&spec.name) else { return Err(spec.name) };
            // Fused tensors are close to each other.
            match layout.iter_mut().rev().take(8).find(|tensor| tensor.name == theirs) {
                Some(tensor) => tensor.parts.push(spec),
                None => layout.push(FileTensor { name: theirs, shape: Vec::new(), parts: vec![spec] }),
            }
        }
        for tensor in &mut layout {
            let (first, count) = (&tensor.parts[0].shape, tensor.parts.len());
            tensor.shape = if let Role::Expert(_) = tensor.parts[0].role {
                [&[count], &first[..]].concat()
            } else {
                let rows = tensor.parts.iter().map(|part| part.shape[0]).sum();
                [&[rows], &first[1..]].concat()
            };
        }
        Ok(layout)
    }

    /// The GGUF name of a decoder tensor.
    fn rename(&self, name: &str) -> Option<String> {
        let (stem, suffix) = name.rsplit_once('.')?;
        if let Some((_, theirs)) = TENSORS.iter().find(|(ours, _)| *ours == stem) {
            return Some(format!("{theirs}.{suffix}"));
        }
        let (layer, part) = stem.strip_prefix("model.layers.")?.split_once('.')?;
        let expert = part.strip_prefix("mlp.experts.").and_then(|rest| rest.split_once('.'));
        let part = expert.map_or(part.to_owned(), |(_, matrix)| format!("mlp.experts.*.{matrix}"));
        let (_, theirs) = self.renames.iter().chain(&PARTS).find(|(ours, _)| *ours == part)?;
        Some(format!("blk.{layer}.{theirs}.{suffix}"))
    }
}
