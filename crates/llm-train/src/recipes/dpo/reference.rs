//! The reference of DPO: a frozen model, or its log-probabilities of all training answers, computed once and stored in the run.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use llm_model::Model;
use serde_json::{Value, json};

use super::pairs::{Pair, replies};
use crate::completions::{answer_logprobs, frozen_logprobs, numbers};
use crate::run::write_json;
use crate::{Error, Result};

/// Where the log-probabilities of the reference come from.
pub(super) enum Reference {
    /// The loss has no reference.
    None,
    /// The frozen model, asked at each step.
    Model(Box<Model>),
    /// Log-probabilities of the (chosen, rejected) answer of each training pair.
    Stored(Vec<[f64; 2]>),
}

impl Reference {
    /// The log-probabilities of the answers of these training pairs, the chosen ones first: `(2n,)`; `None` without a reference.
    pub fn of(&self, pairs: &[&Pair], indices: &[usize], device: &Device) -> Result<Option<Tensor>> {
        Ok(match self {
            Self::None => None,
            Self::Model(model) => Some(answer_logprobs(model, &replies(pairs))?.sums.detach()),
            Self::Stored(all) => {
                let side = |side: usize| indices.iter().map(move |&index| all[index][side] as f32);
                let values: Vec<f32> = side(0).chain(side(1)).collect();
                Some(Tensor::from_vec(values, 2 * pairs.len(), device)?)
            }
        })
    }
}

/// The log-probabilities of the (chosen, rejected) answer of each pair under `model`.
pub(super) fn logprobs(model: &Model, pairs: &[Pair], batch_size: usize) -> Result<Vec<[f64; 2]>> {
    let mut all = Vec::with_capacity(pairs.len());
    for pairs in pairs.chunks(batch_size.max(1)) {
        let pairs: Vec<&Pair> = pairs.iter().collect();
        let sums = frozen_logprobs(model, &replies(&pairs), 2 * pairs.len())?;
        all.extend((0..pairs.len()).map(|i| [sums[i], sums[pairs.len() + i]]));
    }
    Ok(all)
}

/// The list of checksums in the folder of stored log-probabilities.
const CHECKSUMS: &str = "checksums.b3";

fn folder(run: &Path) -> PathBuf {
    run.join("reference")
}

/// The log-probabilities that [`store`] wrote into the folder of a run, for so many pairs; `None` if there are none or they are
/// damaged.
pub(super) fn stored(run: &Path, pairs: usize) -> Option<Vec<[f64; 2]>> {
    let folder = folder(run);
    if !folder.is_dir() {
        return None;
    }
    if let Err(error) = llm_files::verify_checksums(&folder, CHECKSUMS) {
        tracing::warn!("{}: {error}; the log-probabilities of the reference are computed again", folder.display());
        return None;
    }
    let text = fs::read_to_string(folder.join(FILE)).ok()?;
    let all: Vec<[f64; 2]> =
        serde_json::from_value(serde_json::from_str::<Value>(&text).ok()?.get(KEY)?.clone()).ok()?;
    (all.len() == pairs).then_some(all)
}

const FILE: &str = "logprobs.json";
const KEY: &str = "chosen_and_rejected";

/// Stores log-probabilities with their checksum in the folder of a run.
pub(super) fn store(run: &Path, logprobs: &[[f64; 2]]) -> Result<()> {
    let folder = folder(run);
    fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    write_json(&folder.join(FILE), &json!({ KEY: logprobs }))?;
    llm_files::write_checksums(&folder, CHECKSUMS).map_err(Error::io(folder))
}

/// The values of a tensor `(2n,)` as (chosen, rejected) of n pairs.
pub(super) fn by_pair(sums: &Tensor) -> Result<(Vec<f64>, Vec<f64>)> {
    let mut chosen = numbers(sums)?;
    let rejected = chosen.split_off(chosen.len() / 2);
    Ok((chosen, rejected))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_log_probabilities_are_read_unless_they_are_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let all = vec![[-1.25, -2.5], [f64::from(-0.1f32), -3.]];
        assert_eq!(stored(dir.path(), 2), None);
        store(dir.path(), &all).unwrap();
        assert_eq!(stored(dir.path(), 2), Some(all));
        assert_eq!(stored(dir.path(), 3), None, "of other data");
        let file = dir.path().join("reference/logprobs.json");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace("-1.25", "-1.5")).unwrap();
        assert_eq!(stored(dir.path(), 2), None);
    }
}
