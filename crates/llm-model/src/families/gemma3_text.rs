//! Gemma 3's text model: `model_type = "gemma3_text"`. As Gemma 2, with norms of queries and keys, and another base of the
//! rotation where a layer looks through a window.

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
    let longest = config.max_position_embeddings;
    let parameters = keys.get("rope_parameters");
    let map = |kind: &str| parameters.and_then(|map| map.get(kind)).filter(|map| !map.is_null());
    let (mut scaling, mut theta) = (RopeScaling::Default, None);
    if let Some(map) = map("full_attention") {
        (scaling, theta) = own(keys, map, longest)?;
    }
    if let Some(map) = keys.get("rope_scaling") {
        let (scaled, own_theta, _) = keys.rope_map("rope_scaling", map, longest)?;
        (scaling, theta) = (scaled, own_theta.or(theta));
    }
    (config.rope_scaling, config.rope_theta) = (scaling, theta.or(global).unwrap_or(GLOBAL_THETA));
    let mut local_theta = None;
    if let Some(map) = map("sliding_attention") {
        let (scaling, theta) = own(keys, map, longest)?;
        if scaling != RopeScaling::Default {
            return keys.wrong(format!("\"rope_parameters\" of \"sliding_attention\" is {map}; it must be unscaled"));
        }
        local_theta = theta;
    }
    config.rope_local_theta = Some(local_theta.or(local).unwrap_or(LOCAL_THETA));
    Ok(config)
}

fn own(keys: &Keys, map: &Value, longest: usize) -> Result<(RopeScaling, Option<f64>)> {
    match keys.rope_map("rope_parameters", map, longest)? {
        (scaling, theta, None | Some(1.)) => Ok((scaling, theta)),
        (_, _, Some(part)) => keys.wrong(format!("\"partial_rotary_factor\" is {part}; this decoder supports 1.0")),
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
