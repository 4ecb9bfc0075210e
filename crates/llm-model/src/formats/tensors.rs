//! Converts the tensors of a family's files to the decoder's parameters and back. Every tensor of the files must be used.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::families::{TensorMap, family};
use crate::weight::Weight;
use crate::{Error, Head, ModelConfig, Params, Result, TensorSpec};

/// Buffers that some writers store with the weights: masks and rotary frequencies. They follow from the configuration.
const BUFFERS: [&str; 5] =
    [".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"];

/// The expected shape of each tensor in the files.
fn file_shapes(config: &ModelConfig, head: Head) -> BTreeMap<String, Vec<usize>> {
    let family = family(config.model_type);
    let in_file = |TensorSpec { name, mut shape, .. }| {
        let map = family.map_tensor(config, head, &name);
        if let Some(rows) = map.rows {
            shape[0] = rows.groups * rows.group_len;
        }
        if map.transposed {
            shape.reverse();
        }
        (map.name, shape)
    };
    config.tensor_specs(head).into_iter().map(in_file).collect()
}

/// The decoder's parameters from the tensors of a family's files. The error lists every tensor that is missing,
/// unexpected or does not have the shape that `config` requires.
///
/// Memory-mapped matrices stay mapped, except transposed ones and interleaved parts of a fused matrix.
pub(crate) fn from_files(
    mut tensors: BTreeMap<String, Weight>,
    config: &ModelConfig,
    head: Head,
    origin: &str,
) -> Result<Params> {
    let family = family(config.model_type);
    tensors.retain(|name, _| !BUFFERS.iter().any(|buffer| name.ends_with(buffer)));
    let expected = file_shapes(config, head);
    if !tensors.keys().any(|name| name.starts_with(family.prefix)) {
        // Saved without head: the names have no prefix.
        let full = |name: String| format!("{}{name}", family.prefix);
        let full = |name: String| if expected.contains_key(&full(name.clone())) { full(name) } else { name };
        tensors = tensors.into_iter().map(|(name, tensor)| (full(name), tensor)).collect();
    }
    // Some writers store a tied output layer too, or keep it in addition to a score head. Neither model uses it.
    if config.tie_word_embeddings || head != Head::LanguageModel {
        tensors.remove(&family.map_tensor(config, head, "lm_head.weight").name);
    }
    let mut problems = Vec::new();
    for (name, shape) in &expected {
        match tensors.get(name).map(Weight::dims) {
            None => problems.push(format!("tensor \"{name}\" {shape:?} is missing")),
            Some(found) if found != *shape => {
                problems.push(format!("tensor \"{name}\" has shape {found:?}; config.json says {shape:?}"));
            }
            Some(_) => {}
        }
    }
    let extra = tensors.keys().filter(|name| !expected.contains_key(*name));
    problems.extend(extra.map(|name| format!("tensor \"{name}\" is not part of this model")));
    if !problems.is_empty() {
        return Err(Error::Tensors { origin: origin.to_owned(), problems });
    }
    let mut ours = Params::default();
    for TensorSpec { name, shape, .. } in config.tensor_specs(head) {
        let map = family.map_tensor(config, head, &name);
        let mut matrix = tensors[&map.name].clone();
        if map.transposed {
            matrix = Weight::from(matrix.to_dense()?.t()?.contiguous()?);
        }
        if let Some(rows) = map.rows {
            matrix = match &matrix {
                Weight::Mapped(w) if rows.groups == 1 => {
                    Weight::Mapped(w.slice_rows(rows.start..rows.start + rows.len)?)
                }
                _ => {
                    let grouped = matrix.to_dense()?.reshape((rows.groups, rows.group_len, ()))?;
                    Weight::from(grouped.narrow(1, rows.start, rows.len)?.contiguous()?.reshape(shape)?)
                }
            };
        }
        ours.insert(name, matrix);
    }
    Ok(ours)
}

/// The tensors of a family's files from the decoder's tensors.
pub(crate) fn to_files(
    tensors: &BTreeMap<String, Tensor>,
    config: &ModelConfig,
    head: Head,
) -> Result<BTreeMap<String, Tensor>> {
    let family = family(config.model_type);
    let mut parts: BTreeMap<String, Vec<(TensorMap, &Tensor)>> = BTreeMap::new();
    for (name, tensor) in tensors {
        let map = family.map_tensor(config, head, name);
        parts.entry(map.name.clone()).or_default().push((map, tensor));
    }
    let mut files = BTreeMap::new();
    for (name, mut parts) in parts {
        parts.sort_by_key(|(map, _)| map.rows.map_or(0, |rows| rows.start));
        let mut slices = Vec::new();
        for (map, tensor) in &parts {
            slices.push(match map.rows {
                Some(rows) => tensor.reshape((rows.groups, rows.len, ()))?,
                None => (*tensor).clone(),
            });
        }
        let (map, first) = &parts[0];
        let mut tensor = match map.rows {
            Some(rows) => {
                let all = Tensor::cat(&slices, 1)?;
                let mut shape = first.dims().to_vec();
                shape[0] = rows.groups * rows.group_len;
                all.reshape(shape)?
            }
            None => slices.swap_remove(0),
        };
        if map.transposed {
            tensor = tensor.t()?.contiguous()?;
        }
        files.insert(name, tensor);
    }
    Ok(files)
}
