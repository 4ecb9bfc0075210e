//! Gemma 3 (text): `model_type = "gemma3_text"`. Gemma 2 with norms of queries and keys, and a separate rotary base for
//! sliding-window layers.

use serde_json::{Value, json};

use super::keys::{Keys, rope_json};
use super::{Family, gemma2};
use crate::config::QkNorm;
use crate::{ModelConfig, Result, RopeScaling};

pub(super) const FAMILY: Family =
    Family::new([Some("Gemma3ForCausalLM"), Some("Gemma3TextForSequenceClassification"), None], read, write);

const GLOBAL_THETA: f64 = 1e6;
const LOCAL_THETA: f64 = 1e4;

fn read(keys: &Keys) -> Result<ModelConfig> {
    let pattern = keys.count("sliding_window_pattern")?.unwrap_or(6);
    if pattern == 0 {
        return keys.wrong("\"sliding_window_pattern\" is 0; it must be at least 1");
    }
    let mut config = gemma2::read_with_pattern(keys, pattern)?;
    config.qk_norm = Some(QkNorm::Head);
    let (global, local) = (keys.float("rope_theta")?, keys.float("rope_local_base_freq")?);
    let max_positions = config.max_position_embeddings;
    let parameters = keys.get("rope_parameters");
    let map = |kind: &str| parameters.and_then(|map| map.get(kind)).filter(|map| !map.is_null());
    let (mut scaling, mut theta) = (RopeScaling::Default, None);
    if let Some(map) = map("full_attention") {
        (scaling, theta) = rope_of_type(keys, map, max_positions)?;
    }
    if let Some(map) = keys.get("rope_scaling") {
        let (scaled, inner_theta, _) = keys.rope_map("rope_scaling", map, max_positions)?;
        (scaling, theta) = (scaled, inner_theta.or(theta));
    }
    (config.rope_scaling, config.rope_theta) = (scaling, theta.or(global).unwrap_or(GLOBAL_THETA));
    let mut local_theta = None;
    if let Some(map) = map("sliding_attention") {
        let (scaling, theta) = rope_of_type(keys, map, max_positions)?;
        if scaling != RopeScaling::Default {
            return keys.wrong(format!(
                "\"rope_parameters\" of \"sliding_attention\" is {map}; scaling is not supported there"
            ));
        }
        local_theta = theta;
    }
    config.rope_local_theta = Some(local_theta.or(local).unwrap_or(LOCAL_THETA));
    Ok(config)
}

/// Scaling and base in the `rope_parameters` of one attention type.
fn rope_of_type(keys: &Keys, map: &Value, max_positions: usize) -> Result<(RopeScaling, Option<f64>)> {
    match keys.rope_map("rope_parameters", map, max_positions)? {
        (scaling, theta, None | Some(1.)) => Ok((scaling, theta)),
        (_, _, Some(part)) => keys.wrong(format!("\"partial_rotary_factor\" is {part}; this family supports 1.0 only")),
    }
}

fn write(config: &ModelConfig) -> Value {
    let mut json = gemma2::write(config);
    let local = config.rope_local_theta.unwrap_or(LOCAL_THETA);
    json["rope_local_base_freq"] = json!(local);
    json["rope_parameters"] = json!({
        "full_attention": rope_json(config),
        "sliding_attention": {"rope_theta": local, "rope_type": "default"},
    });
    json
}
