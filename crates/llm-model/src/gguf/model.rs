//! A model from a GGUF file, and a GGUF file of a model.

use std::path::Path;

use candle_core::{DType, Tensor};
use half::{bf16, f16};
use llm_kernels::{BlockFormat, Bytes, QuantizedWeight, StoredWeight};
use serde_json::{Value as Json, json};

use super::architecture::{self, Architecture, NEEDED, Whole};
use super::file::{Entry, GgufFile, Metadata, TensorType, Unwritten, Value, write};
use crate::params::{Matrix, blocks_for};
use crate::rotary::RotaryEmbedding;
use crate::{Error, Head, Model, ModelConfig, NormKind, Params, Result, RopeScaling};

/// Token ids that are the model's in `config.json` and the tokenizer's in GGUF.
const TOKENS: [(&str, &str); 3] = [
    ("tokenizer.ggml.bos_token_id", "bos_token_id"),
    ("tokenizer.ggml.eos_token_id", "eos_token_id"),
    ("tokenizer.ggml.padding_token_id", "pad_token_id"),
];

/// Keys of rotary positions, behind the name of the architecture and a dot.
const ROTARY: [&str; 4] =
    ["rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"];

/// The tensor that says by what each rotary frequency is divided.
const DIVISORS: &str = "rope_freqs.weight";

impl Model {
    /// The frozen language model of a GGUF file, its matrices read where they lie in it.
    ///
    /// Every tensor and every key of the architecture is accounted for: one that is missing, or not known, is an error.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let architecture = architecture_of(file)?;
        let tied = !file.tensors.contains_key("output.weight");
        let origin = file.path().display().to_string();
        let config = read_config(file.metadata(), architecture, tied).map_err(|message| file.broken(message))?;
        let mut config = match file.tensors.get("token_embd.weight").and_then(|entry| entry.shape.first()) {
            Some(&vocab_size) => ModelConfig { vocab_size, ..config }.validated(&origin)?,
            None => return Err(file.broken("tensor \"token_embd.weight\" is missing")),
        };
        if let Some(entry) = file.tensors.get(DIVISORS) {
            let divisors = matrix(entry, None)?.dense()?.flatten_all()?.to_vec1()?;
            let known = divided_by(&config, &divisors);
            config = known.ok_or_else(|| file.broken(format!("tensor \"{DIVISORS}\" is not that of a Llama 3")))?;
        }
        // Experts are parts of one tensor, so that their number is bound by its size.
        let of_tensor = |entry: &Entry| if entry.shape.len() == 3 { entry.shape[0] } else { 1 };
        config.check_count(file.tensors.values().map(of_tensor).sum(), &origin)?;
        let layout = architecture.layout(&config).map_err(|name| unnamed(architecture, &name))?;
        check(&layout, file, &origin)?;
        let mut params = Params::default();
        for whole in layout {
            let entry = &file.tensors[&whole.name];
            let rows: usize = whole.parts.iter().map(|(_, shape)| rows_of(shape)).sum();
            let (row, mut start) = (entry.bytes.len() / rows.max(1), 0);
            for (name, shape) in whole.parts {
                let end = start + rows_of(&shape) * row;
                let part = entry.bytes.slice(start..end);
                let bytes = part.ok_or_else(|| file.broken(format!("tensor \"{}\" is cut short", whole.name)))?;
                let broken = |e: Error| file.broken(format!("tensor \"{}\": {e}", whole.name));
                let part = Entry { kind: entry.kind, bytes, shape };
                let heads = turned(architecture, &name, &config);
                let mut matrix = matrix(&part, heads).map_err(broken)?;
                if let (Matrix::Dense(w), true) = (&matrix, counted_from_one(&config, &name)) {
                    matrix = Matrix::Dense((w - 1.)?);
                }
                params.insert(&name, matrix);
                start = end;
            }
        }
        Self::new(config, Head::LanguageModel, params)
    }

    /// Writes the GGUF file of a language model, with the keys of its tokenizer; `path` must not be there yet.
    ///
    /// Matrices are written in `kind`, or as they are held where it is none; norms, biases and routers in f32. As llama.cpp
    /// does, the output layer is in `Q6_K` where the rest has 4 bits; rows that blocks do not divide are in `Q8_0`, or in
    /// f32. What a GGUF file cannot say of a model is an error that names it.
    pub fn save_gguf(&self, path: &Path, kind: Option<TensorType>, tokenizer: Metadata) -> Result<()> {
        if self.head() != Head::LanguageModel {
            return Err(Error::Input("a GGUF file is written of a language model; this model scores texts".to_owned()));
        }
        let config = self.config();
        let alike =
            |a: &&&Architecture| a.model_types.contains(&config.model_type) && a.experts == config.experts.is_some();
        let Some(architecture) = architecture::ALL.iter().find(alike) else {
            let name = config.model_type.name();
            return Err(Error::Input(format!("\"model_type\" \"{name}\" is not written as GGUF; {}", supported())));
        };
        let mut metadata = tokenizer;
        metadata.extend(keys(architecture, config));
        self.check_keys(&metadata, architecture)?;
        let (mut tensors, mut held) = (Vec::new(), TensorType::F32);
        if let RopeScaling::Llama3 { .. } = config.rope_scaling {
            let divisors = RotaryEmbedding::divisors(config);
            let shape = vec![divisors.len()];
            let bytes = divisors.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>().into();
            let bytes = Box::new(move || Ok(bytes));
            tensors.push(Unwritten { name: DIVISORS.to_owned(), kind: TensorType::F32, shape, bytes });
        }
        let layout = architecture.layout(config).map_err(|name| unnamed(architecture, &name))?;
        for Whole { name, shape, parts } in layout {
            let first = self.params().matrix(&parts[0].0)?;
            let output = name == "output.weight" || config.tie_word_embeddings && name == "token_embd.weight";
            let small = ["position_embd", "ffn_gate_inp"].iter().any(|part| name.contains(part));
            let wanted = if small { TensorType::F32 } else { kind.unwrap_or(kind_of(&first)) };
            let tensor_kind = kind_for(wanted, &shape, output);
            if name.contains(".ffn_up") {
                held = tensor_kind;
            }
            let bytes = Box::new(move || {
                let mut all = Vec::new();
                for (name, shape) in &parts {
                    let mut matrix = self.params().matrix(name)?;
                    if let (Matrix::Dense(w), true) = (&matrix, counted_from_one(config, name)) {
                        matrix = Matrix::Dense((w + 1.)?);
                    }
                    let mut bytes = encoded(&matrix, tensor_kind, name)?;
                    if let Some(heads) = turned(architecture, name, config) {
                        bytes = in_turns(&bytes, shape[0], heads).into();
                    }
                    if parts.len() == 1 {
                        return Ok(bytes);
                    }
                    all.extend_from_slice(&bytes);
                }
                Ok(all.into())
            });
            tensors.push(Unwritten { name, kind: tensor_kind, shape, bytes });
        }
        metadata.insert("general.file_type".to_owned(), Value::Unsigned(kind.unwrap_or(held).file_type().into()));
        write(path, &metadata, tensors)
    }

    /// Refuses a model that would not be read back from its keys.
    fn check_keys(&self, metadata: &Metadata, architecture: &Architecture) -> Result<()> {
        let ours = self.config();
        let read = read_config(metadata, architecture, ours.tie_word_embeddings).map_err(Error::Input)?;
        // Alike in all that counts when a model runs.
        let mut theirs = ModelConfig { model_type: ours.model_type, ..read.validated("GGUF")? };
        theirs.initializer_range = ours.initializer_range;
        if let RopeScaling::Llama3 { .. } = ours.rope_scaling {
            let read = divided_by(&theirs, &RotaryEmbedding::divisors(ours));
            theirs.rope_scaling = read.map_or(theirs.rope_scaling, |_| ours.rope_scaling.clone());
        }
        if let (Some(theirs), Some(ours)) = (&mut theirs.experts, &ours.experts) {
            theirs.router_aux_loss_coef = ours.router_aux_loss_coef;
            theirs.router_z_loss_coef = ours.router_z_loss_coef;
        }
        let (ours, theirs) = (json!(ours), json!(theirs));
        let mut keys = ours.as_object().into_iter().flat_map(|map| map.keys());
        match keys.find(|key| !alike(&ours[key.as_str()], &theirs[key.as_str()])) {
            None => Ok(()),
            Some(key) => Err(Error::Input(format!(
                "\"{key}\" is {}, which a GGUF file of a \"{}\" cannot say (it would be read as {})",
                ours[key], architecture.name, theirs[key]
            ))),
        }
    }
}

/// Equal, where numbers count in the 32 bits that a file has for them.
fn alike(a: &Json, b: &Json) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a as f32 == b as f32,
        _ => a == b,
    }
}

fn unnamed(architecture: &Architecture, name: &str) -> Error {
    Error::Input(format!("tensor \"{name}\" has no name in a GGUF file of a \"{}\"", architecture.name))
}

fn supported() -> String {
    let mut names: Vec<&str> = architecture::ALL.iter().map(|a| a.name).collect();
    names.dedup();
    format!("supported are {}", names.join(", "))
}

fn architecture_of(file: &GgufFile) -> Result<&'static Architecture> {
    let Some(Value::Text(name)) = file.metadata().get("general.architecture") else {
        return Err(file.broken("\"general.architecture\" is missing"));
    };
    let experts = file.metadata().contains_key(&format!("{name}.expert_count"));
    let found = architecture::ALL.iter().find(|a| a.name == name && a.experts == experts).copied();
    found.ok_or_else(|| {
        let kind = if experts { " with experts" } else { "" };
        file.broken(format!("\"general.architecture\" is \"{name}\"{kind}; {}", supported()))
    })
}

/// Rows in a tensor of this shape; of a vector each number is one.
fn rows_of(shape: &[usize]) -> usize {
    shape.first().copied().unwrap_or(0)
}

/// What a file's keys say of the decoder; what is wrong with them otherwise.
fn read_config(
    metadata: &Metadata,
    architecture: &Architecture,
    tied: bool,
) -> std::result::Result<ModelConfig, String> {
    let mut json = architecture.base();
    let full = |key: &str| format!("{}.{key}", architecture.name);
    let get = |key: &str| metadata.get(&full(key));
    json["num_key_value_heads"] = Json::Null;
    for (key, place) in architecture.keys() {
        let value = match get(key) {
            Some(Value::Unsigned(n)) => json!(n),
            Some(Value::Float(x)) if x.is_finite() => json!(x),
            Some(Value::Bool(yes)) => json!(yes),
            Some(other) => return Err(format!("\"{}\" is {other:?}; a number was expected", full(key))),
            None if NEEDED.contains(&(key, place)) => return Err(format!("\"{}\" is missing", full(key))),
            None => continue,
        };
        let Some(slot) = json.pointer_mut(place) else { return Err(format!("\"{}\" has no place", full(key))) };
        if key == "attention.value_length" && *slot != value {
            return Err(format!("\"{}\" is {value}, but queries and keys have {slot}", full(key)));
        }
        *slot = value;
    }
    if json["num_key_value_heads"].is_null() {
        json["num_key_value_heads"] = json["num_attention_heads"].clone();
    }
    json["rope_scaling"] = match (get(ROTARY[1]), get(ROTARY[2]), get(ROTARY[3])) {
        (None, None, _) => json!({"rope_type": "default"}),
        (Some(Value::Text(kind)), ..) if kind == "none" => json!({"rope_type": "default"}),
        (Some(Value::Text(kind)), Some(Value::Float(factor)), _) if kind == "linear" => {
            json!({"rope_type": "linear", "factor": factor})
        }
        (Some(Value::Text(kind)), Some(Value::Float(factor)), Some(Value::Unsigned(original))) if kind == "yarn" => {
            json!({"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original})
        }
        (kind, ..) => return Err(format!("\"{}\" is {kind:?}; none, linear and yarn are supported", full(ROTARY[1]))),
    };
    for (theirs, ours) in TOKENS {
        if let Some(Value::Unsigned(id)) = metadata.get(theirs) {
            json[ours] = json!(id);
        }
    }
    json["tie_word_embeddings"] = json!(tied);
    let known = |key: &str| architecture.keys().any(|(name, _)| name == key) || ROTARY.contains(&key);
    let own = |key: &&String| key.strip_prefix(&full("")).is_some_and(|key| !known(key));
    if let Some(key) = metadata.keys().find(own) {
        return Err(format!("\"{key}\" is {:?}; a model with this key is not supported", metadata[key]));
    }
    let mut config: ModelConfig = serde_json::from_value(json).map_err(|e| e.to_string())?;
    if config.head_dim == 0 {
        config.head_dim = config.hidden_size / config.num_attention_heads.max(1);
    }
    match get(ROTARY[0]) {
        None => {}
        Some(Value::Unsigned(turning)) if config.head_dim > 0 => {
            config.partial_rotary_factor = *turning as f64 / config.head_dim as f64;
        }
        Some(other) => return Err(format!("\"{}\" is {other:?}; a number was expected", full(ROTARY[0]))),
    }
    if config.num_hidden_layers > 1 << 16 {
        return Err(format!("\"{}\" is {}, which no model has", full("block_count"), config.num_hidden_layers));
    }
    (architecture.complete)(&mut config);
    Ok(config)
}

/// The keys of a file.
fn keys(architecture: &Architecture, config: &ModelConfig) -> Metadata {
    let json = json!(config);
    let value = |value: &Json| match value {
        Json::Bool(yes) => Some(Value::Bool(*yes)),
        Json::Number(n) => n.as_u64().map(Value::Unsigned).or(n.as_f64().map(Value::Float)),
        _ => None,
    };
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture".to_owned(), Value::Text(architecture.name.to_owned()));
    metadata.insert("general.quantization_version".to_owned(), Value::Unsigned(2));
    let full = |key: &str| format!("{}.{key}", architecture.name);
    for (key, place) in architecture.keys() {
        // Learned positions do not turn.
        let turns = !config.learned_positions || !key.starts_with("rope.");
        let value = json.pointer(place).and_then(value).filter(|_| turns);
        metadata.extend(value.map(|value| (full(key), value)));
    }
    if !config.learned_positions {
        metadata.insert(full(ROTARY[0]), Value::Unsigned(config.rotary_dim() as u64));
    }
    let (kind, factor, original) = match config.rope_scaling {
        RopeScaling::Linear { factor } => ("linear", factor, None),
        RopeScaling::Yarn { factor, original_max_position_embeddings: original, .. } => ("yarn", factor, original),
        _ => ("none", 1., None),
    };
    if kind != "none" {
        metadata.insert(full(ROTARY[1]), Value::Text(kind.to_owned()));
        metadata.insert(full(ROTARY[2]), Value::Float(factor));
        metadata.extend(original.map(|original| (full(ROTARY[3]), Value::Unsigned(original as u64))));
    }
    metadata.extend(TOKENS.iter().filter_map(|(theirs, ours)| Some(((*theirs).to_owned(), value(&json[*ours])?))));
    metadata
}

/// The decoder with the scaling of Llama 3 that divides its frequencies so; none where no setting that was published does.
///
/// A file has the divisors alone. Every Llama 3 has a `low_freq_factor` of 1 and a `high_freq_factor` of 4.
fn divided_by(config: &ModelConfig, divisors: &[f32]) -> Option<ModelConfig> {
    let factor = divisors.iter().copied().fold(1., f32::max);
    let tries = (4..18).map(|power| RopeScaling::Llama3 {
        factor: factor.into(),
        low_freq_factor: 1.,
        high_freq_factor: 4.,
        original_max_position_embeddings: 1 << power,
    });
    let near = |config: &ModelConfig| {
        let ours = RotaryEmbedding::divisors(config);
        ours.len() == divisors.len() && ours.iter().zip(divisors).all(|(a, b)| (a / b - 1.).abs() < 1e-4)
    };
    // The first training of all of them had texts of 8192 tokens.
    let tries = tries.clone().skip(9).take(1).chain(tries);
    tries.map(|rope_scaling| ModelConfig { rope_scaling, ..config.clone() }).find(near)
}

/// Checks that a file has exactly the tensors of a model; the error lists every difference.
fn check(layout: &[Whole], file: &GgufFile, origin: &str) -> Result<()> {
    let mut problems = Vec::new();
    for Whole { name, shape, .. } in layout {
        match file.tensors.get(name).map(|entry| &entry.shape) {
            None => problems.push(format!("tensor \"{name}\" {shape:?} is missing")),
            Some(found) if found != shape => {
                problems.push(format!("tensor \"{name}\" has shape {found:?}, the file's keys say {shape:?}"));
            }
            Some(_) => {}
        }
    }
    let expected: std::collections::BTreeSet<&str> = layout.iter().map(|whole| whole.name.as_str()).collect();
    let extra = file.tensors.keys().filter(|name| !expected.contains(name.as_str()) && *name != DIVISORS);
    problems.extend(extra.map(|name| format!("tensor \"{name}\" belongs to no part of this model")));
    if problems.is_empty() { Ok(()) } else { Err(Error::Tensors { origin: origin.to_owned(), problems }) }
}

/// Whether a weight counts from 0 here and from 1 in GGUF: a norm of Gemma.
fn counted_from_one(config: &ModelConfig, name: &str) -> bool {
    config.norm == NormKind::RmsPlusOne && name.ends_with("norm.weight")
}

/// The heads in which the rows of this tensor stand in turns.
fn turned(architecture: &Architecture, name: &str, config: &ModelConfig) -> Option<usize> {
    match name {
        _ if !architecture.interleaved => None,
        name if name.contains(".q_proj.") => Some(config.num_attention_heads),
        name if name.contains(".k_proj.") => Some(config.num_key_value_heads),
        _ => None,
    }
}

fn matrix(entry: &Entry, heads: Option<usize>) -> Result<Matrix> {
    let (rows, cols) = match *entry.shape.as_slice() {
        [count] if heads.is_some() => (count, 1),
        [cols] => (1, cols),
        [rows, cols] => (rows, cols),
        _ => return Err(Error::Input(format!("the shape {:?} is not that of a matrix", entry.shape))),
    };
    let bytes = match heads {
        Some(heads) if heads > 0 && rows.is_multiple_of(2 * heads) => in_halves(&entry.bytes, rows, heads).into(),
        Some(heads) => return Err(Error::Input(format!("{rows} rows are not {heads} heads of an even size"))),
        None => entry.bytes.clone(),
    };
    let matrix = match entry.kind {
        TensorType::Blocks(format) => Matrix::Blocks(QuantizedWeight::from_blocks(bytes, (rows, cols), format)?),
        TensorType::F32 => Matrix::Stored(StoredWeight::new(bytes, (rows, cols), DType::F32)?),
        TensorType::F16 => Matrix::Stored(StoredWeight::new(bytes, (rows, cols), DType::F16)?),
        TensorType::Bf16 => Matrix::Stored(StoredWeight::new(bytes, (rows, cols), DType::BF16)?),
    };
    Ok(if entry.shape.len() == 1 { Matrix::Dense(matrix.dense()?.flatten_all()?) } else { matrix })
}

fn kind_of(matrix: &Matrix) -> TensorType {
    let dtype = match matrix {
        Matrix::Blocks(w) => return TensorType::Blocks(w.format()),
        Matrix::Stored(w) => w.dtype(),
        Matrix::Dense(w) => w.dtype(),
    };
    match dtype {
        DType::BF16 => TensorType::Bf16,
        DType::F16 => TensorType::F16,
        _ => TensorType::F32,
    }
}

/// What a tensor of this shape is written in where matrices are asked for in `kind`.
fn kind_for(kind: TensorType, shape: &[usize], output: bool) -> TensorType {
    let (row, matrix) = (shape.last().copied().unwrap_or(0), shape.len() > 1);
    match kind {
        _ if !matrix => TensorType::F32,
        TensorType::Blocks(format) => {
            let coarse = matches!(format, BlockFormat::Q4_0 | BlockFormat::Q4_K);
            let format = if output && coarse { BlockFormat::Q6_K } else { format };
            blocks_for(format, row).map_or(TensorType::F32, TensorType::Blocks)
        }
        other => other,
    }
}

/// The bytes of a tensor in `kind`.
fn encoded(matrix: &Matrix, kind: TensorType, name: &str) -> Result<Bytes> {
    match (matrix, kind) {
        (Matrix::Blocks(w), TensorType::Blocks(format)) if w.format() == format => return Ok(w.blocks().clone()),
        (Matrix::Stored(w), _) if kind_of(matrix) == kind => return Ok(w.bytes().clone()),
        _ => {}
    }
    let tensor = matrix.dense()?.detach();
    let numbers = |tensor: &Tensor| -> Result<Vec<f32>> { Ok(tensor.flatten_all()?.to_vec1::<f32>()?) };
    Ok(match kind {
        TensorType::Blocks(format) => QuantizedWeight::quantize(&tensor, format)?.blocks().clone(),
        TensorType::F32 => numbers(&tensor)?.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>().into(),
        TensorType::Bf16 => {
            let bytes = numbers(&tensor)?.into_iter().flat_map(|x| bf16::from_f32(x).to_le_bytes());
            bytes.collect::<Vec<u8>>().into()
        }
        TensorType::F16 => {
            let numbers = numbers(&tensor)?;
            if let Some(x) = numbers.iter().find(|x| x.is_finite() && x.abs() > f16::MAX.to_f32()) {
                let message = format!("tensor \"{name}\" holds {x}, which f16 cannot; write bf16 or f32 instead");
                return Err(Error::Input(message));
            }
            numbers.into_iter().flat_map(|x| f16::from_f32(x).to_le_bytes()).collect::<Vec<u8>>().into()
        }
    })
}

/// The rows of each head in turns: first, half + first, second, half + second, …
fn in_turns(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let half = rows / heads / 2;
    reordered(bytes, rows, |row| {
        let (head, i) = (row / (2 * half), row % (2 * half));
        head * 2 * half + i % 2 * half + i / 2
    })
}

/// The rows of each head in halves, from rows in turns.
fn in_halves(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let half = rows / heads / 2;
    reordered(bytes, rows, |row| {
        let (head, i) = (row / (2 * half), row % (2 * half));
        head * 2 * half + i % half * 2 + i / half
    })
}

/// Row `i` of the result is row `from(i)`.
fn reordered(bytes: &[u8], rows: usize, from: impl Fn(usize) -> usize) -> Vec<u8> {
    let row = bytes.len() / rows.max(1);
    (0..rows).flat_map(|i| &bytes[from(i) * row..][..row]).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_in_turns_come_back_in_halves() {
        let rows: Vec<u8> = (0..12).collect();
        // Two heads of six rows.
        assert_eq!(in_turns(&rows, 12, 2), [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
        assert_eq!(in_halves(&in_turns(&rows, 12, 2), 12, 2), rows);
    }
}
