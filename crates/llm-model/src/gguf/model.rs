//! A model from a GGUF file, and a GGUF file of a model.

use std::path::Path;

use candle_core::{DType, Tensor};
use half::{bf16, f16};
use llm_kernels::{BlockFormat, Bytes, QuantizedWeight, StoredWeight};
use serde_json::{Map, Value as Json, json};

use super::architecture::{self, Architecture};
use super::file::{Entry, GgufFile, Metadata, TensorType, Unwritten, Value, write};
use crate::params::{Matrix, blocks_for};
use crate::{Error, Head, Model, Params, Result, families};

/// Token ids that are the model's in `config.json` and the tokenizer's in GGUF.
const TOKENS: [(&str, &str); 3] = [
    ("tokenizer.ggml.bos_token_id", "bos_token_id"),
    ("tokenizer.ggml.eos_token_id", "eos_token_id"),
    ("tokenizer.ggml.padding_token_id", "pad_token_id"),
];

impl Model {
    /// The frozen language model of a GGUF file, its matrices read where they lie in it.
    ///
    /// Every tensor and every key of the architecture is accounted for: one that is missing, or not known, is an error.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let architecture = architecture_of(file)?;
        let config = config_json(file, architecture)?;
        let origin = file.path().display().to_string();
        let (config, head, _) = families::llama::from_json(&config, &origin)?;
        if config.num_hidden_layers > file.tensors.len() {
            let (layers, tensors) = (config.num_hidden_layers, file.tensors.len());
            return Err(file.broken(format!("{tensors} tensors are too few for {layers} blocks")));
        }
        let (mut params, mut problems) = (Params::default(), Vec::new());
        for (theirs, entry) in &file.tensors {
            let Some(name) = architecture.tensor_name(theirs) else {
                problems.push(format!("tensor \"{theirs}\" belongs to no part of a \"{}\"", architecture.name));
                continue;
            };
            let heads = turned(architecture, &name, config.num_attention_heads, config.num_key_value_heads);
            let broken = |e: Error| file.broken(format!("tensor \"{theirs}\": {e}"));
            params.insert(&name, matrix(entry, heads).map_err(broken)?);
        }
        if !problems.is_empty() {
            return Err(Error::Tensors { origin, problems });
        }
        params.check(&config, head, &origin)?;
        Self::new(config, head, params)
    }

    /// Writes the GGUF file of a language model, with the keys of its tokenizer; `path` must not be there yet.
    ///
    /// Matrices are written in `kind`, or as they are held where it is none; norms and biases in f32. As llama.cpp does,
    /// the output layer is in `Q6_K` where the rest has 4 bits, and rows that blocks do not divide are in `Q8_0`, or in f32.
    pub fn save_gguf(&self, path: &Path, kind: Option<TensorType>, tokenizer: Metadata) -> Result<()> {
        if self.head() != Head::LanguageModel {
            return Err(Error::Input("a GGUF file is written of a language model; this model scores texts".to_owned()));
        }
        let json = self.config_json();
        let model_type = json["model_type"].as_str().unwrap_or_default();
        let Some(architecture) = architecture::ALL.iter().find(|a| a.model_type == model_type) else {
            return Err(Error::Input(format!(
                "\"model_type\" \"{model_type}\" is not written as GGUF; {}",
                supported()
            )));
        };
        let config = self.config();
        let (mut tensors, mut held) = (Vec::new(), TensorType::F32);
        for (name, shape) in config.tensor_shapes(Head::LanguageModel) {
            let matrix = self.params().matrix(&name)?;
            let Some(theirs) = architecture.gguf_name(&name) else {
                return Err(Error::Input(format!("tensor \"{name}\" has no name in a GGUF file of \"{model_type}\"")));
            };
            let output = name == "lm_head.weight" || config.tie_word_embeddings && theirs == "token_embd.weight";
            let kind = kind_for(kind.unwrap_or(kind_of(&matrix)), &shape, output);
            if shape.len() == 2 && !output {
                held = kind;
            }
            let heads = turned(architecture, &name, config.num_attention_heads, config.num_key_value_heads);
            let bytes = Box::new(move || {
                let bytes = encoded(&matrix, kind, &name)?;
                Ok(if let Some(heads) = heads { in_turns(&bytes, shape_rows(&matrix), heads).into() } else { bytes })
            });
            tensors.push(Unwritten { name: theirs, kind, shape, bytes });
        }
        let mut metadata = tokenizer;
        metadata.extend(keys(architecture, &json));
        metadata.insert("general.file_type".to_owned(), Value::Unsigned(kind.unwrap_or(held).file_type().into()));
        write(path, &metadata, tensors)
    }
}

fn supported() -> String {
    let names: Vec<&str> = architecture::ALL.iter().map(|a| a.name).collect();
    format!("supported are {}", names.join(", "))
}

fn architecture_of(file: &GgufFile) -> Result<&'static Architecture> {
    let Some(Value::Text(name)) = file.metadata().get("general.architecture") else {
        return Err(file.broken("\"general.architecture\" is missing"));
    };
    let found = architecture::ALL.iter().find(|a| a.name == name).copied();
    found.ok_or_else(|| file.broken(format!("\"general.architecture\" is \"{name}\"; {}", supported())))
}

/// The `config.json` that a file stands for.
fn config_json(file: &GgufFile, architecture: &Architecture) -> Result<Json> {
    let mut json = Map::new();
    json.insert("model_type".to_owned(), json!(architecture.model_type));
    json.insert("architectures".to_owned(), json!([architecture.class]));
    json.insert("tie_word_embeddings".to_owned(), json!(!file.tensors.contains_key("output.weight")));
    if let Some(rows) = file.tensors.get("token_embd.weight").and_then(|entry| entry.shape.first()) {
        json.insert("vocab_size".to_owned(), json!(rows));
    }
    let prefix = format!("{}.", architecture.name);
    for key in architecture.keys {
        let name = format!("{prefix}{}", key.gguf);
        let value = match file.metadata().get(&name) {
            Some(Value::Unsigned(n)) => json!(n),
            Some(Value::Float(x)) if x.is_finite() => json!(x),
            Some(other) => return Err(file.broken(format!("\"{name}\" is {other:?}; a number was expected"))),
            None if key.needed => return Err(file.broken(format!("\"{name}\" is missing"))),
            None => continue,
        };
        if let Some(before) = json.insert(key.config.to_owned(), value.clone()).filter(|before| *before != value) {
            return Err(file.broken(format!("\"{name}\" is {value}, where {before} was said before")));
        }
    }
    let known = |name: &str| architecture.keys.iter().any(|key| key.gguf == name);
    if let Some(key) = file.metadata().keys().find(|key| key.strip_prefix(&prefix).is_some_and(|name| !known(name))) {
        let value = &file.metadata()[key];
        return Err(file.broken(format!("\"{key}\" is {value:?}; a model with this key is not supported")));
    }
    for (theirs, ours) in TOKENS {
        if let Some(Value::Unsigned(id)) = file.metadata().get(theirs) {
            json.insert(ours.to_owned(), json!(id));
        }
    }
    Ok(Json::Object(json))
}

/// The keys of a file for a `config.json`.
fn keys(architecture: &Architecture, json: &Json) -> Metadata {
    let number = |value: &Json| match value.as_u64() {
        Some(n) => Some(Value::Unsigned(n)),
        None => value.as_f64().map(Value::Float),
    };
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture".to_owned(), Value::Text(architecture.name.to_owned()));
    metadata.insert("general.quantization_version".to_owned(), Value::Unsigned(2));
    for key in architecture.keys {
        // A float that is a whole number is a float all the same.
        let float = matches!(key.gguf, "rope.freq_base" | "attention.layer_norm_rms_epsilon");
        let value = if float { json[key.config].as_f64().map(Value::Float) } else { number(&json[key.config]) };
        metadata.extend(value.map(|value| (format!("{}.{}", architecture.name, key.gguf), value)));
    }
    metadata.extend(TOKENS.iter().filter_map(|(theirs, ours)| Some(((*theirs).to_owned(), number(&json[ours])?))));
    metadata
}

/// The heads in which the rows of this tensor stand in turns.
fn turned(architecture: &Architecture, name: &str, heads: usize, groups: usize) -> Option<usize> {
    match name {
        _ if !architecture.interleaved => None,
        name if name.contains(".q_proj.") => Some(heads),
        name if name.contains(".k_proj.") => Some(groups),
        _ => None,
    }
}

fn matrix(entry: &Entry, heads: Option<usize>) -> Result<Matrix> {
    let (rows, cols) = match *entry.shape.as_slice() {
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
    Ok(if entry.shape.len() == 1 { Matrix::Dense(matrix.dense()?.reshape(cols)?) } else { matrix })
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
    let (row, matrix) = (shape.last().copied().unwrap_or(0), shape.len() == 2);
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

fn shape_rows(matrix: &Matrix) -> usize {
    match matrix {
        Matrix::Dense(w) => w.dims().first().copied().unwrap_or(0),
        Matrix::Blocks(w) => w.shape().0,
        Matrix::Stored(w) => w.shape().0,
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
