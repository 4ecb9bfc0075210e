//! A critic without a trunk of its own: a linear head, initially 0, on the hidden states of the policy (Ziegler et al. 2019, arXiv
//! 1909.08593, section 2.1). It needs the memory of one model less than a separate critic.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor, Var};
use llm_model::{Head, Model, Params, Role, Weight, read_safetensors, write_safetensors};

use crate::{Error, Result};

/// A model with the head of a critic, whose trunk is that of `policy`: the same variables, so that the gradients of a loss of its values
/// are those of the policy too. Only the head is its own.
pub(super) fn on(policy: &Model) -> Result<Model> {
    if !policy.active_adapters().is_empty() {
        let message = "value_head_on_policy needs a policy without adapters, whose hidden states are trained; merge the adapter \
                       (llm-infer merge), or set value_head_on_policy = false";
        return Err(Error::Unsupported(message.to_owned()));
    }
    let (config, device) = (policy.config(), policy.device());
    let mut shared: BTreeMap<&str, &Weight> = policy.params().iter().collect();
    let mut weights = BTreeMap::new();
    for spec in config.tensor_specs(Head::Token) {
        let weight = match shared.remove(spec.name.as_str()).and_then(Weight::tensor) {
            _ if spec.role == Role::Score => Weight::Trainable(Var::zeros(spec.shape.as_slice(), DType::F32, &device)?),
            Some(tensor) => Weight::Dense(tensor.clone()),
            None => {
                let message = format!("the policy has no trainable {}; set value_head_on_policy = false", spec.name);
                return Err(Error::Unsupported(message));
            }
        };
        weights.insert(spec.name, weight);
    }
    Ok(Model::new(config.clone(), Head::Token, Params::from_weights(weights))?)
}

/// Writes the head.
pub(super) fn save(critic: &Model, path: &Path) -> Result<()> {
    let tensors = critic.params().vars().into_iter().map(|(name, var)| (name, var.as_tensor().clone()));
    Ok(write_safetensors(path, &tensors.collect::<BTreeMap<String, Tensor>>())?)
}

/// Reads the head that [`save`] wrote into a critic.
pub(super) fn restore(critic: &Model, path: &Path) -> Result<()> {
    let tensors = read_safetensors(path)?;
    for (name, var) in critic.params().vars() {
        let missing = || Error::BadFile(format!("{}: \"{name}\" is missing; remove this checkpoint", path.display()));
        var.set(&tensors.get(&name).ok_or_else(missing)?.to_device(var.device())?)?;
    }
    Ok(())
}
