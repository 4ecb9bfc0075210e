//! Reading a model from a GGUF file, and writing one.

use std::path::Path;

use llm_files::WeightDtype;
use llm_files::gguf::{GgufFile, GgufTensor, Metadata, PendingTensor, Value, file_type, write};
use serde_json::{Value as Json, json};

use super::architecture::{self, Architecture, FileTensor};
use super::keys::{self, ROPE_FACTORS, recover_llama3_scaling};
use super::weights::{choose_dtype, dtype_of, encode, interleave_rows, matrix};
use crate::formats::generation::GenerationConfig;
use crate::rotary::RotaryEmbedding;
use crate::shapes::Projection;
use crate::weight::Weight;
use crate::{Error, Head, Model, ModelConfig, NormKind, Params, Result, Role, RopeScaling, TensorSpec};

impl Model {
    /// Opens the frozen language model of a GGUF file with memory-mapped matrices.
    ///
    /// A missing or unknown tensor or key of the architecture is an error.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let architecture = architecture_of(file)?;
        let tied = !file.tensors().contains_key("output.weight");
        let origin = file.path().display().to_string();
        let config = keys::read(file.metadata(), architecture, tied).map_err(|message| file.broken(message))?;
        let rows = file.tensors().get("token_embd.weight").and_then(|entry| entry.shape.first().copied());
        let vocab_size = rows.ok_or_else(|| file.broken("tensor \"token_embd.weight\" is missing"))?;
        let key = format!("{}.vocab_size", architecture.name);
        if let Some(value) = file.metadata().get(&key).filter(|value| **value != Value::Unsigned(vocab_size as u64)) {
            return Err(file
                .broken(format!("\"{key}\" is {value:?}, but \"token_embd.weight\" has {vocab_size} rows"))
                .into());
        }
        let mut config = ModelConfig { vocab_size, ..config };
        for warning in config.drop_unknown_tokens() {
            tracing::warn!("{origin}: {warning}");
        }
        let mut config = config.validated(&origin)?;
        if let Some(entry) = file.tensors().get(ROPE_FACTORS) {
            let found = entry.shape == [config.rotary_dim() / 2];
            let divisors = if found { matrix(entry, None)?.to_dense()?.flatten_all()?.to_vec1()? } else { Vec::new() };
            let known = recover_llama3_scaling(&config, &divisors).filter(|_| found);
            config = known.ok_or_else(|| {
                file.broken(format!("tensor \"{ROPE_FACTORS}\" does not match the rope scaling of Llama 3"))
            })?;
        }
        // Experts are stored in one tensor, so its size limits their number.
        let matrices =
            |entry: &GgufTensor| if entry.shape.len() == 3 { entry.shape[0].min(entry.bytes.len()) } else { 1 };
        config.check_count(file.tensors().values().map(matrices).sum(), &origin)?;
        let layout = architecture.layout(&config).map_err(|name| no_gguf_name(architecture, &name))?;
        check(&layout, file, &origin)?;
        let mut params = Params::default();
        for tensor in layout {
            let entry = &file.tensors()[&tensor.name];
            let rows: usize = tensor.parts.iter().map(|part| rows_of(&part.shape)).sum();
            let (row, mut start) = (entry.bytes.len() / rows.max(1), 0);
            for spec in tensor.parts {
                let end = start + rows_of(&spec.shape) * row;
                let part = entry.bytes.slice(start..end);
                let bytes = part.ok_or_else(|| file.broken(format!("tensor \"{}\" is truncated", tensor.name)))?;
                let broken = |e: Error| file.broken(format!("tensor \"{}\": {e}", tensor.name));
                let part = GgufTensor { dtype: entry.dtype, bytes, shape: spec.shape.clone() };
                let heads = interleaved_heads(architecture, spec.role, &config);
                let mut matrix = matrix(&part, heads).map_err(broken)?;
                if let (Weight::Dense(w), true) = (&matrix, has_unit_offset(&config, &spec)) {
                    matrix = Weight::from((w - 1.)?);
                }
                params.insert(spec.name, matrix);
                start = end;
            }
        }
        let generation = GenerationConfig::of_gguf(file.metadata(), config.vocab_size);
        Ok(Self::new(config, Head::LanguageModel, params)?.with_generation(generation))
    }

    /// Writes a language model as a GGUF file, with the metadata of its tokenizer; `path` must not exist.
    ///
    /// Matrices are written in `dtype`, or in their current format if it is none; norms, biases and routers as f32. As in
    /// llama.cpp, the output layer is `Q6_K` if the other matrices have 4 bits. Matrices with a row length that is not a
    /// multiple of the block size are `Q8_0` or f32. A setting that GGUF cannot express is an error that names it.
    pub fn save_gguf(&self, path: impl AsRef<Path>, dtype: Option<WeightDtype>, tokenizer: Metadata) -> Result<()> {
        let path = path.as_ref();
        if self.head() != Head::LanguageModel {
            return Err(Error::Input("GGUF supports language models only; this model has a score head".to_owned()));
        }
        let config = self.config();
        let matches =
            |a: &&&Architecture| a.model_types.contains(&config.model_type) && a.experts == config.experts.is_some();
        let Some(architecture) = architecture::ALL.iter().find(matches) else {
            let name = config.model_type.name();
            return Err(Error::Input(format!(
                "\"model_type\" \"{name}\" cannot be written as GGUF; {}",
                supported_architectures()
            )));
        };
        let mut metadata = tokenizer;
        metadata.extend(keys::to_metadata(architecture, config));
        metadata.extend(self.generation().to_gguf(&self.eos_token_ids()));
        self.check_keys(&metadata, architecture)?;
        let (mut tensors, mut main_dtype) = (Vec::new(), WeightDtype::F32);
        if let RopeScaling::Llama3 { .. } = config.rope_scaling {
            let divisors = RotaryEmbedding::frequency_divisors(config);
            let shape = vec![divisors.len()];
            let bytes = divisors.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>().into();
            let bytes = Box::new(move || Ok(bytes));
            tensors.push(PendingTensor { name: ROPE_FACTORS.to_owned(), dtype: WeightDtype::F32, shape, bytes });
        }
        let layout = architecture.layout(config).map_err(|name| no_gguf_name(architecture, &name))?;
        for FileTensor { name, shape, parts } in layout {
            let (role, first) = (parts[0].role, self.params().get(&parts[0].name)?);
            let output = role == Role::Output || config.tie_word_embeddings && role == Role::Embedding;
            let small = matches!(role, Role::PositionEmbedding | Role::Router);
            let wanted = if small { WeightDtype::F32 } else { dtype.unwrap_or(dtype_of(first)) };
            let chosen = choose_dtype(wanted, &shape, output);
            if parts.iter().any(|part| matches!(part.role, Role::Mlp(Projection::Up) | Role::Expert(Projection::Up))) {
                main_dtype = chosen;
            }
            let bytes = Box::new(move || {
                let mut all = Vec::new();
                for spec in &parts {
                    let mut matrix = self.params().get(&spec.name)?.clone();
                    if let (Some(w), true) = (matrix.tensor(), has_unit_offset(config, spec)) {
                        matrix = Weight::from((w + 1.)?);
                    }
                    let mut bytes = encode(&matrix, chosen, &spec.name)?;
                    if let Some(heads) = interleaved_heads(architecture, spec.role, config) {
                        bytes = interleave_rows(&bytes, spec.shape[0], heads).into();
                    }
                    if parts.len() == 1 {
                        return Ok(bytes);
                    }
                    all.extend_from_slice(&bytes);
                }
                Ok(all.into())
            });
            tensors.push(PendingTensor { name, dtype: chosen, shape, bytes });
        }
        metadata.insert("general.file_type".to_owned(), Value::Unsigned(file_type(dtype.unwrap_or(main_dtype)).into()));
        write(path, &metadata, tensors)
    }

    /// Checks that reading the metadata gives the same configuration.
    fn check_keys(&self, metadata: &Metadata, architecture: &Architecture) -> Result<()> {
        let ours = self.config();
        let read = keys::read(metadata, architecture, ours.tie_word_embeddings).map_err(Error::Input)?;
        // Ignore fields that do not affect inference.
        let mut theirs = ModelConfig { model_type: ours.model_type, ..read.validated("GGUF")? };
        theirs.initializer_range = ours.initializer_range;
        theirs = ignoring_harmless(theirs, ours);
        if let RopeScaling::Llama3 { .. } = ours.rope_scaling {
            let read = recover_llama3_scaling(&theirs, &RotaryEmbedding::frequency_divisors(ours));
            theirs.rope_scaling = read.map_or(theirs.rope_scaling, |_| ours.rope_scaling.clone());
        }
        if let (Some(theirs), Some(ours)) = (&mut theirs.experts, &ours.experts) {
            theirs.router_aux_loss_coef = ours.router_aux_loss_coef;
            theirs.router_z_loss_coef = ours.router_z_loss_coef;
        }
        let (ours, theirs) = (json!(ours), json!(theirs));
        let mut keys = ours.as_object().into_iter().flat_map(|map| map.keys());
        match keys.find(|key| !equal_in_f32(&ours[key.as_str()], &theirs[key.as_str()])) {
            None => Ok(()),
            Some(key) => Err(Error::Input(format!(
                "\"{key}\" is {}; a GGUF file of a \"{}\" cannot express this (it would be read as {})",
                ours[key], architecture.name, theirs[key]
            ))),
        }
    }
}

/// `theirs` with the fields of `ours` that a file says differently or not at all without a change of the result.
fn ignoring_harmless(mut theirs: ModelConfig, ours: &ModelConfig) -> ModelConfig {
    // The tokenizer of the file has tokens that the model does not name.
    for (theirs, ours) in [
        (&mut theirs.bos_token_id, ours.bos_token_id),
        (&mut theirs.eos_token_id, ours.eos_token_id),
        (&mut theirs.pad_token_id, ours.pad_token_id),
    ] {
        *theirs = theirs.filter(|_| ours.is_some());
    }
    // A window as long as the context hides nothing. In a Gemma 3 it also selects the rotary embedding.
    let whole = ours.sliding_window.is_some_and(|window| window >= ours.max_position_embeddings);
    if whole && theirs.sliding_window.is_none() && ours.rope_local_theta.is_none() {
        theirs.sliding_window = ours.sliding_window;
        theirs.layer_types.clone_from(&ours.layer_types);
    }
    theirs
}

fn no_gguf_name(architecture: &Architecture, name: &str) -> Error {
    Error::Input(format!("tensor \"{name}\" has no name in a GGUF file of a \"{}\"", architecture.name))
}

fn supported_architectures() -> String {
    let mut names: Vec<&str> = architecture::ALL.iter().map(|a| a.name).collect();
    names.dedup();
    format!("supported: {}", names.join(", "))
}

fn architecture_of(file: &GgufFile) -> Result<&'static Architecture> {
    let Some(Value::Text(name)) = file.metadata().get("general.architecture") else {
        return Err(file.broken("\"general.architecture\" is missing").into());
    };
    let experts = file.metadata().contains_key(&format!("{name}.expert_count"));
    let found = architecture::ALL.iter().find(|a| a.name == name && a.experts == experts).copied();
    found.ok_or_else(|| {
        let kind = if experts { " with experts" } else { "" };
        file.broken(format!("\"general.architecture\" is \"{name}\"{kind}; {}", supported_architectures())).into()
    })
}

/// The number of rows of a tensor; each element of a vector is a row.
fn rows_of(shape: &[usize]) -> usize {
    shape.first().copied().unwrap_or(0)
}

/// Checks that the tensors of a file match the model; the error lists every difference.
fn check(layout: &[FileTensor], file: &GgufFile, origin: &str) -> Result<()> {
    let mut problems = Vec::new();
    for FileTensor { name, shape, .. } in layout {
        match file.tensors().get(name).map(|entry| &entry.shape) {
            None => problems.push(format!("tensor \"{name}\" {shape:?} is missing")),
            Some(found) if found != shape => {
                problems.push(format!("tensor \"{name}\" has shape {found:?}; the keys of the file say {shape:?}"));
            }
            Some(_) => {}
        }
    }
    let expected: std::collections::BTreeSet<&str> = layout.iter().map(|tensor| tensor.name.as_str()).collect();
    let extra = file.tensors().keys().filter(|name| !expected.contains(name.as_str()) && *name != ROPE_FACTORS);
    problems.extend(extra.map(|name| format!("tensor \"{name}\" is not part of this model")));
    if problems.is_empty() { Ok(()) } else { Err(Error::Tensors { origin: origin.to_owned(), problems }) }
}

/// Whether GGUF stores `1 + w` for this weight `w`: the norms of Gemma.
fn has_unit_offset(config: &ModelConfig, spec: &TensorSpec) -> bool {
    config.norm == NormKind::RmsPlusOne && spec.role.is_norm() && !spec.is_bias
}

/// The number of heads with interleaved rows in this tensor; none if its rows are not interleaved.
fn interleaved_heads(architecture: &Architecture, role: Role, config: &ModelConfig) -> Option<usize> {
    match role {
        _ if !architecture.interleaved => None,
        Role::Query => Some(config.num_attention_heads),
        Role::Key => Some(config.num_key_value_heads),
        _ => None,
    }
}

/// Equality of JSON values, with numbers compared as f32, the precision of GGUF.
fn equal_in_f32(a: &Json, b: &Json) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a as f32 == b as f32,
        _ => a == b,
    }
}
