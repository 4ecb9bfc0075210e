//! Qwen3 with a mixture of experts: `model_type = "qwen3_moe"`. Single layers can be dense.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::keys::{Defaults, Keys, base_json};
use super::{Family, classes};
use crate::config::{Activation, AttentionBias, ExpertsConfig, QkNorm};
use crate::{ModelConfig, Result};

pub(super) const FAMILY: Family = Family::new(
    classes("Qwen3MoeForCausalLM", "Qwen3MoeForSequenceClassification", "Qwen3MoeForTokenClassification"),
    read,
    write,
);

fn read(keys: &Keys) -> Result<ModelConfig> {
    let config = keys.base(&Defaults::default())?;
    let step = keys.count("decoder_sparse_step")?.unwrap_or(1);
    if step == 0 {
        return keys.wrong("\"decoder_sparse_step\" is 0; it must be at least 1");
    }
    let mlp_only: BTreeSet<usize> = keys.counts("mlp_only_layers")?.unwrap_or_default().into_iter().collect();
    let dense = |layer: &usize| mlp_only.contains(layer) || !(layer + 1).is_multiple_of(step);
    let experts = ExpertsConfig {
        num_experts: match keys.count("num_experts")? {
            Some(experts) => experts,
            None => keys.required("num_local_experts")?,
        },
        num_experts_per_tok: keys.required("num_experts_per_tok")?,
        moe_intermediate_size: keys.required("moe_intermediate_size")?,
        norm_topk_prob: keys.flag("norm_topk_prob", false)?,
        router_aux_loss_coef: keys.float("router_aux_loss_coef")?.unwrap_or(0.001),
        router_z_loss_coef: keys.float("router_z_loss_coef")?.unwrap_or(0.),
        dense_layers: (0..config.num_hidden_layers).filter(dense).collect(),
    };
    let use_window = keys.flag("use_sliding_window", false)?;
    Ok(ModelConfig {
        hidden_act: keys.activation("hidden_act", Activation::Silu)?,
        qk_norm: Some(QkNorm::Head),
        attention_bias: if keys.flag("attention_bias", false)? { AttentionBias::All } else { AttentionBias::None },
        sliding_window: keys.count_or("sliding_window", 4096)?.filter(|_| use_window),
        experts: Some(experts),
        ..config
    })
}

fn write(config: &ModelConfig) -> Value {
    let mut json = base_json(config);
    json["attention_bias"] = json!(config.attention_bias != AttentionBias::None);
    json["use_sliding_window"] = json!(config.sliding_window.is_some());
    json["sliding_window"] = json!(config.sliding_window);
    let experts = config.experts.clone().unwrap_or_default();
    json["num_experts"] = json!(experts.num_experts);
    json["num_experts_per_tok"] = json!(experts.num_experts_per_tok);
    json["moe_intermediate_size"] = json!(experts.moe_intermediate_size);
    json["norm_topk_prob"] = json!(experts.norm_topk_prob);
    json["router_aux_loss_coef"] = json!(experts.router_aux_loss_coef);
    json["router_z_loss_coef"] = json!(experts.router_z_loss_coef);
    json["decoder_sparse_step"] = json!(1);
    json["mlp_only_layers"] = json!(experts.dense_layers);
    json
}
