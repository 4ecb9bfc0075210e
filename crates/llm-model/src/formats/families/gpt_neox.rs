//! GPT-NeoX and Pythia: `model_type = "gpt_neox"`. Parallel residual, partial rotary embedding, layer norm, biases. The
//! files fuse queries, keys and values, interleaved by head.

use serde_json::{Value, json};

use super::keys::{Keys, rope_json};
use super::tensor_map::{Rows, TensorMap, rename};
use super::{Family, classes};
use crate::config::{Activation, AttentionBias, NormKind};
use crate::{ModelConfig, Result, RopeScaling};

pub(super) const FAMILY: Family = Family {
    classes: classes("GPTNeoXForCausalLM", "GPTNeoXForSequenceClassification", "GPTNeoXForTokenClassification"),
    read,
    write,
    prefix: "gpt_neox.",
    token_head: "classifier",
    tensor_map,
};

fn read(keys: &Keys) -> Result<ModelConfig> {
    let heads = keys.required("num_attention_heads")?;
    let mut config = ModelConfig {
        vocab_size: keys.required("vocab_size")?,
        hidden_size: keys.required("hidden_size")?,
        intermediate_size: keys.required("intermediate_size")?,
        num_hidden_layers: keys.required("num_hidden_layers")?,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        max_position_embeddings: keys.required("max_position_embeddings")?,
        norm: NormKind::Layer,
        rms_norm_eps: keys.float("layer_norm_eps")?.unwrap_or(1e-5),
        parallel_residual: keys.flag("use_parallel_residual", true)?,
        attention_bias: if keys.flag("attention_bias", true)? { AttentionBias::All } else { AttentionBias::None },
        mlp_bias: true,
        gated_mlp: false,
        hidden_act: keys.activation("hidden_act", Activation::Gelu)?,
        partial_rotary_factor: keys.float("rotary_pct")?.unwrap_or(0.25),
        ..keys.shared(false)?
    };
    keys.rope(&mut config, "rotary_emb_base", 10_000.)?;
    Ok(config)
}

fn write(config: &ModelConfig) -> Value {
    let mut rope = rope_json(config);
    rope["partial_rotary_factor"] = json!(config.partial_rotary_factor);
    let mut json = json!({
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "hidden_act": config.hidden_act,
        "layer_norm_eps": config.rms_norm_eps,
        "use_parallel_residual": config.parallel_residual,
        "attention_bias": config.attention_bias != AttentionBias::None,
        "rotary_pct": config.partial_rotary_factor,
        "rotary_emb_base": config.rope_theta,
        "rope_parameters": rope,
    });
    if config.rope_scaling != RopeScaling::Default {
        json["rope_scaling"] = json["rope_parameters"].clone(); // the old key, for old readers
    }
    json
}

fn tensor_map(config: &ModelConfig, name: &str) -> TensorMap {
    match name {
        "model.embed_tokens.weight" => return rename("gpt_neox.embed_in.weight"),
        "lm_head.weight" => return rename("embed_out.weight"),
        _ => {}
    }
    if let Some(part) = name.strip_prefix("model.norm.") {
        return rename(format!("gpt_neox.final_layer_norm.{part}"));
    }
    let Some(rest) = name.strip_prefix("model.layers.") else { return rename(name) };
    let d = config.head_dim;
    let third = |i: usize| Some(Rows { groups: config.num_attention_heads, start: i * d, len: d, group_len: 3 * d });
    let rows = match rest.split('.').nth(2) {
        Some("q_proj") => third(0),
        Some("k_proj") => third(1),
        Some("v_proj") => third(2),
        _ => None,
    };
    let mut rest = rest.to_owned();
    for (ours, theirs) in [
        ("self_attn.q_proj", "attention.query_key_value"),
        ("self_attn.k_proj", "attention.query_key_value"),
        ("self_attn.v_proj", "attention.query_key_value"),
        ("self_attn.o_proj", "attention.dense"),
        ("mlp.up_proj", "mlp.dense_h_to_4h"),
        ("mlp.down_proj", "mlp.dense_4h_to_h"),
    ] {
        rest = rest.replace(ours, theirs);
    }
    TensorMap { rows, ..rename(format!("gpt_neox.layers.{rest}")) }
}
