//! Mixtral: `model_type = "mixtral"`. Mistral with a mixture of experts in every layer.

use serde_json::{Value, json};

use super::keys::{Defaults, Keys, base_json};
use super::tensor_map::{TensorMap, rename};
use super::{Family, classes};
use crate::config::{Activation, ExpertsConfig};
use crate::{ModelConfig, Result};

pub(super) const FAMILY: Family = Family {
    tensor_map,
    ..Family::new(
        classes("MixtralForCausalLM", "MixtralForSequenceClassification", "MixtralForTokenClassification"),
        read,
        write,
    )
};

fn read(keys: &Keys) -> Result<ModelConfig> {
    if let Some(noise) = keys.float("router_jitter_noise")?.filter(|noise| *noise != 0.) {
        keys.warn(format!("\"router_jitter_noise\" is {noise}; training does not add this noise to the router"));
    }
    let defaults = Defaults { rms_norm_eps: 1e-5, rope_theta: 1e6, ..Defaults::default() };
    let config = keys.base(&defaults)?;
    let experts = ExpertsConfig {
        num_experts: keys.required("num_local_experts")?,
        num_experts_per_tok: keys.required("num_experts_per_tok")?,
        moe_intermediate_size: config.intermediate_size,
        norm_topk_prob: true,
        router_aux_loss_coef: keys.float("router_aux_loss_coef")?.unwrap_or(0.001),
        router_z_loss_coef: keys.float("router_z_loss_coef")?.unwrap_or(0.),
        dense_layers: Vec::new(),
    };
    Ok(ModelConfig {
        hidden_act: keys.activation("hidden_act", Activation::Silu)?,
        sliding_window: keys.count("sliding_window")?,
        experts: Some(experts),
        ..config
    })
}

fn write(config: &ModelConfig) -> Value {
    let mut json = base_json(config);
    let experts = config.experts.clone().unwrap_or_default();
    json["sliding_window"] = json!(config.sliding_window);
    json["num_local_experts"] = json!(experts.num_experts);
    json["num_experts_per_tok"] = json!(experts.num_experts_per_tok);
    json["router_aux_loss_coef"] = json!(experts.router_aux_loss_coef);
    json["router_z_loss_coef"] = json!(experts.router_z_loss_coef);
    json
}

fn tensor_map(_: &ModelConfig, name: &str) -> TensorMap {
    let mut name = name.replace(".mlp.", ".block_sparse_moe.");
    for (ours, theirs) in [("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")] {
        name = name.replace(ours, theirs);
    }
    rename(name)
}
