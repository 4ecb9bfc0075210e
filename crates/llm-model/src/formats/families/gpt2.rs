//! GPT-2: `model_type = "gpt2"`. Learned positions, layer norm, biases in all layers. The files store matrices as
//! `(in, out)` and fuse queries, keys and values.

use serde_json::{Value, json};

use super::keys::Keys;
use super::tensor_map::{Rows, TensorMap, rename};
use super::{Family, classes};
use crate::config::{Activation, AttentionBias, NormKind};
use crate::{ModelConfig, Result};

pub(super) const FAMILY: Family = Family {
    classes: classes("GPT2LMHeadModel", "GPT2ForSequenceClassification", "GPT2ForTokenClassification"),
    read,
    write,
    prefix: "transformer.",
    token_head: "classifier",
    tensor_map,
};

fn read(keys: &Keys) -> Result<ModelConfig> {
    for key in ["scale_attn_by_inverse_layer_idx", "add_cross_attention"] {
        keys.only(key, &json!(false))?;
    }
    let (width, heads) = (keys.required("n_embd")?, keys.required("n_head")?);
    Ok(ModelConfig {
        vocab_size: keys.required("vocab_size")?,
        hidden_size: width,
        intermediate_size: keys.count("n_inner")?.unwrap_or(4 * width),
        num_hidden_layers: keys.required("n_layer")?,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        max_position_embeddings: keys.required("n_positions")?,
        norm: NormKind::Layer,
        rms_norm_eps: keys.float("layer_norm_epsilon")?.unwrap_or(1e-5),
        attention_bias: AttentionBias::All,
        mlp_bias: true,
        gated_mlp: false,
        hidden_act: keys.activation("activation_function", Activation::GeluPytorchTanh)?,
        learned_positions: true,
        query_pre_attn_scalar: if keys.flag("scale_attn_weights", true)? { None } else { Some(1.) },
        ..keys.shared(true)?
    })
}

fn write(config: &ModelConfig) -> Value {
    let act =
        if config.hidden_act == Activation::GeluPytorchTanh { json!("gelu_new") } else { json!(config.hidden_act) };
    json!({
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_inner": config.intermediate_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "n_positions": config.max_position_embeddings,
        "layer_norm_epsilon": config.rms_norm_eps,
        "activation_function": act,
        "scale_attn_weights": config.query_pre_attn_scalar.is_none(),
    })
}

fn tensor_map(config: &ModelConfig, name: &str) -> TensorMap {
    match name {
        "model.embed_tokens.weight" => return rename("transformer.wte.weight"),
        "model.embed_positions.weight" => return rename("transformer.wpe.weight"),
        _ => {}
    }
    if let Some(part) = name.strip_prefix("model.norm.") {
        return rename(format!("transformer.ln_f.{part}"));
    }
    let Some(rest) = name.strip_prefix("model.layers.") else { return rename(name) };
    let Some((layer, rest)) = rest.split_once('.') else { return rename(name) };
    let Some((part, kind)) = rest.rsplit_once('.') else { return rename(name) };
    let width = config.hidden_size;
    let third = |i: usize| Some(Rows { groups: 1, start: i * width, len: width, group_len: 3 * width });
    let (part, rows, matrix) = match part {
        "input_layernorm" => ("ln_1", None, false),
        "post_attention_layernorm" => ("ln_2", None, false),
        "self_attn.q_proj" => ("attn.c_attn", third(0), true),
        "self_attn.k_proj" => ("attn.c_attn", third(1), true),
        "self_attn.v_proj" => ("attn.c_attn", third(2), true),
        "self_attn.o_proj" => ("attn.c_proj", None, true),
        "mlp.up_proj" => ("mlp.c_fc", None, true),
        "mlp.down_proj" => ("mlp.c_proj", None, true),
        other => (other, None, false),
    };
    let name = format!("transformer.h.{layer}.{part}.{kind}");
    TensorMap { name, transposed: matrix && kind == "weight", rows }
}
