//! Configurations of well-known models, to count parameters and memory without their files.

use crate::{
    Activation, AttentionBias, ExpertsConfig, LayerType, ModelConfig, ModelType, NormKind, NormPlacement, QkNorm,
};

/// The names accepted by [`preset`], from small to large within each family.
pub const PRESETS: [&str; 22] = [
    "gpt2",
    "gpt2-xl",
    "gpt-3-175b",
    "pythia-1b",
    "smollm2-135m",
    "smollm2-1.7b",
    "llama-2-7b",
    "llama-2-13b",
    "llama-2-70b",
    "llama-3-8b",
    "llama-3-70b",
    "llama-3.1-405b",
    "mistral-7b",
    "mixtral-8x7b",
    "mixtral-8x22b",
    "qwen2.5-7b",
    "qwen3-8b",
    "qwen3-30b-a3b",
    "qwen3-235b-a22b",
    "olmo-2-7b",
    "gemma-2-9b",
    "gemma-2-27b",
];

/// The configuration of the model `name`; none if it is not in [`PRESETS`].
///
/// Settings that do not affect sizes, such as the rotary base and scaling, have their defaults.
pub fn preset(name: &str) -> Option<ModelConfig> {
    // [layers, hidden, heads, key/value heads, feed-forward], vocabulary, positions
    Some(match name {
        "gpt2" => gpt2([12, 768, 12], 1024),
        "gpt2-xl" => gpt2([48, 1600, 25], 1024),
        // Brown et al. 2020 (arXiv 2005.14165), table 2.1, as a GPT-2: banded attention is counted as full.
        "gpt-3-175b" => gpt2([96, 12288, 96], 2048),
        "pythia-1b" => ModelConfig {
            norm: NormKind::Layer,
            parallel_residual: true,
            attention_bias: AttentionBias::All,
            mlp_bias: true,
            gated_mlp: false,
            hidden_act: Activation::Gelu,
            partial_rotary_factor: 0.25,
            ..shape(ModelType::GptNeox, [16, 2048, 8, 8, 8192], 50304, 2048)
        },
        "smollm2-135m" => tied(shape(ModelType::Llama, [30, 576, 9, 3, 1536], 49152, 8192)),
        "smollm2-1.7b" => tied(shape(ModelType::Llama, [24, 2048, 32, 32, 8192], 49152, 8192)),
        "llama-2-7b" => shape(ModelType::Llama, [32, 4096, 32, 32, 11008], 32000, 4096),
        "llama-2-13b" => shape(ModelType::Llama, [40, 5120, 40, 40, 13824], 32000, 4096),
        "llama-2-70b" => shape(ModelType::Llama, [80, 8192, 64, 8, 28672], 32000, 4096),
        "llama-3-8b" => shape(ModelType::Llama, [32, 4096, 32, 8, 14336], 128_256, 8192),
        "llama-3-70b" => shape(ModelType::Llama, [80, 8192, 64, 8, 28672], 128_256, 8192),
        "llama-3.1-405b" => shape(ModelType::Llama, [126, 16384, 128, 8, 53248], 128_256, 131_072),
        "mistral-7b" => ModelConfig {
            sliding_window: Some(4096),
            ..shape(ModelType::Mistral, [32, 4096, 32, 8, 14336], 32000, 32768)
        },
        "mixtral-8x7b" => experts([8, 2, 14336], shape(ModelType::Mixtral, [32, 4096, 32, 8, 14336], 32000, 32768)),
        "mixtral-8x22b" => experts([8, 2, 16384], shape(ModelType::Mixtral, [56, 6144, 48, 8, 16384], 32000, 65536)),
        "qwen2.5-7b" => ModelConfig {
            attention_bias: AttentionBias::Qkv,
            ..shape(ModelType::Qwen2, [28, 3584, 28, 4, 18944], 152_064, 131_072)
        },
        "qwen3-8b" => qwen3(shape(ModelType::Qwen3, [36, 4096, 32, 8, 12288], 151_936, 40960)),
        "qwen3-30b-a3b" => {
            experts([128, 8, 768], qwen3(shape(ModelType::Qwen3Moe, [48, 2048, 32, 4, 6144], 151_936, 40960)))
        }
        "qwen3-235b-a22b" => {
            experts([128, 8, 1536], qwen3(shape(ModelType::Qwen3Moe, [94, 4096, 64, 4, 12288], 151_936, 40960)))
        }
        "olmo-2-7b" => ModelConfig {
            norm_placement: NormPlacement::Post,
            qk_norm: Some(QkNorm::Whole),
            ..shape(ModelType::Olmo2, [32, 4096, 32, 32, 11008], 100_352, 4096)
        },
        "gemma-2-9b" => gemma2(256, 256., shape(ModelType::Gemma2, [42, 3584, 16, 8, 14336], 256_000, 8192)),
        "gemma-2-27b" => gemma2(128, 144., shape(ModelType::Gemma2, [46, 4608, 32, 16, 36864], 256_000, 8192)),
        _ => return None,
    })
}

/// A Llama with these sizes and an untied output layer.
fn shape(model_type: ModelType, sizes: [usize; 5], vocab_size: usize, positions: usize) -> ModelConfig {
    let [layers, hidden, heads, groups, inner] = sizes;
    ModelConfig {
        model_type,
        vocab_size,
        hidden_size: hidden,
        intermediate_size: inner,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: groups,
        head_dim: hidden / heads,
        max_position_embeddings: positions,
        tie_word_embeddings: false,
        ..ModelConfig::default()
    }
}

fn tied(config: ModelConfig) -> ModelConfig {
    ModelConfig { tie_word_embeddings: true, ..config }
}

fn gpt2([layers, hidden, heads]: [usize; 3], positions: usize) -> ModelConfig {
    ModelConfig {
        norm: NormKind::Layer,
        learned_positions: true,
        attention_bias: AttentionBias::All,
        mlp_bias: true,
        gated_mlp: false,
        hidden_act: Activation::GeluPytorchTanh,
        ..tied(shape(ModelType::Gpt2, [layers, hidden, heads, heads, 4 * hidden], 50257, positions))
    }
}

fn qwen3(config: ModelConfig) -> ModelConfig {
    ModelConfig { head_dim: 128, qk_norm: Some(QkNorm::Head), ..config }
}

fn gemma2(head_dim: usize, query_scalar: f64, config: ModelConfig) -> ModelConfig {
    let types = [LayerType::SlidingAttention, LayerType::FullAttention];
    ModelConfig {
        head_dim,
        norm: NormKind::RmsPlusOne,
        norm_placement: NormPlacement::Sandwich,
        hidden_act: Activation::GeluPytorchTanh,
        scale_embeddings: true,
        sliding_window: Some(4096),
        layer_types: types.into_iter().cycle().take(config.num_hidden_layers).collect(),
        query_pre_attn_scalar: Some(query_scalar),
        attn_logit_softcapping: Some(50.),
        final_logit_softcapping: Some(30.),
        ..tied(config)
    }
}

fn experts([all, selected, inner]: [usize; 3], config: ModelConfig) -> ModelConfig {
    let experts = ExpertsConfig {
        num_experts: all,
        num_experts_per_tok: selected,
        moe_intermediate_size: inner,
        ..ExpertsConfig::default()
    };
    ModelConfig { experts: Some(experts), ..config }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Head, ParamCount};

    fn count(name: &str) -> ParamCount {
        ParamCount::of(&preset(name).unwrap().validated(name).unwrap(), Head::LanguageModel)
    }

    /// Parameter counts from the model pages (sum over the safetensors files).
    #[test]
    fn every_preset_has_its_published_size() {
        let published = [
            ("gpt2", 124_439_808),
            ("gpt2-xl", 1_557_611_200),
            ("gpt-3-175b", 174_604_259_328),
            ("pythia-1b", 1_011_781_632),
            ("smollm2-135m", 134_515_008),
            ("smollm2-1.7b", 1_711_376_384),
            ("llama-2-7b", 6_738_415_616),
            ("llama-2-13b", 13_015_864_320),
            ("llama-2-70b", 68_976_648_192),
            ("llama-3-8b", 8_030_261_248),
            ("llama-3-70b", 70_553_706_496),
            ("llama-3.1-405b", 405_853_388_800),
            ("mistral-7b", 7_241_732_096),
            ("mixtral-8x7b", 46_702_792_704),
            ("mixtral-8x22b", 140_620_634_112),
            ("qwen2.5-7b", 7_615_616_512),
            ("qwen3-8b", 8_190_735_360),
            ("qwen3-30b-a3b", 30_532_122_624),
            ("qwen3-235b-a22b", 235_093_634_560),
            ("olmo-2-7b", 7_298_617_344),
            ("gemma-2-9b", 9_241_705_984),
            ("gemma-2-27b", 27_227_128_320),
        ];
        for (name, parameters) in published {
            assert_eq!(count(name).total(), parameters, "{name}");
        }
        assert_eq!(published.map(|(name, _)| name), PRESETS);
        assert_eq!(preset("gpt-5"), None);
    }

    /// GPT-3's paper says 175.0 billion; Mixtral's 12.9 (arXiv 2401.04088) and 39 billion active (its announcement),
    /// Qwen3's 3.3 and 22 (arXiv 2505.09388).
    #[test]
    fn counts_match_the_rounded_numbers_of_the_papers() {
        let near = |count: usize, billions: f64, step: f64| {
            let counted = count as f64 / 1e9;
            assert!((counted - billions).abs() <= step, "{counted} is not {billions}");
        };
        near(count("gpt-3-175b").total(), 175., 0.5);
        near(count("mixtral-8x7b").active(), 12.9, 0.05);
        near(count("mixtral-8x22b").active(), 39., 0.5);
        near(count("qwen3-30b-a3b").active(), 3.3, 0.06);
        near(count("qwen3-235b-a22b").active(), 22., 0.5);
    }

    #[test]
    fn every_preset_can_be_written_as_config_json() {
        for name in PRESETS {
            let config = preset(name).unwrap().validated(name).unwrap();
            crate::formats::families::to_json(&config, Head::LanguageModel).unwrap();
        }
    }

    #[test]
    fn parts_match_closed_form_counts() {
        let (gpt2, mixtral) = (count("gpt2"), count("mixtral-8x7b"));
        let h = 768;
        assert_eq!((gpt2.embedding, gpt2.tied, gpt2.head), ((50257 + 1024) * h, 50257 * h, 0));
        assert_eq!((gpt2.attention, gpt2.mlp), (12 * (4 * h * h + 4 * h), 12 * (8 * h * h + 5 * h)));
        assert_eq!(gpt2.norms, (2 * 12 + 1) * 2 * h);
        assert_eq!((mixtral.experts, mixtral.mlp), (32 * 8 * 3 * 4096 * 14336, 0));
        assert_eq!((mixtral.active_experts, mixtral.routers), (mixtral.experts / 4, 32 * 8 * 4096));
        assert_eq!((mixtral.head, mixtral.tied), (32000 * 4096, 0));
    }
}
