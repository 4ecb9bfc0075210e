//! The modules of a model in transformers that an adapter can name, and the decoder's matrices that each contains.

use std::collections::BTreeMap;

use super::tokens::{EMBEDDING, OUTPUT};
use crate::formats::families::{self, Rows};
use crate::shapes::{Projection, Role};
use crate::{Head, ModelConfig, TensorSpec};

/// A module with one matrix or vector.
#[derive(Debug, Clone)]
pub(super) struct Module {
    /// The name in transformers, such as `model.layers.0.self_attn.qkv_proj`.
    pub name: String,
    /// Output features (rows of the matrix); the length of a vector.
    pub out: usize,
    /// Input features (columns of the matrix); 0: it is a vector.
    pub width: usize,
    /// The role of its first part.
    pub role: Role,
    /// Whether the files store the matrix as the decoder does: neither transposed nor fused with others.
    pub plain: bool,
    /// The decoder's matrices that it contains.
    pub parts: Vec<Part>,
    /// The decoder's name of its bias, if it has one.
    pub bias: Option<String>,
}

/// A matrix of the decoder as a part of a module.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// The decoder's name, without `.weight`.
    pub name: String,
    /// Its rows in the module; none: all.
    pub rows: Option<Rows>,
    /// The index of the expert in a module that contains all experts.
    pub expert: Option<usize>,
}

/// The modules of a model, in the order of the forward pass. A tied output layer is a module, too.
pub(super) fn modules(model: &ModelConfig, head: Head) -> Vec<Module> {
    let mut modules: Vec<Module> = Vec::new();
    let mut index: BTreeMap<String, usize> = BTreeMap::new();
    let mut specs = model.tensor_specs(head);
    if head == Head::LanguageModel && model.tie_word_embeddings {
        let shape = vec![model.vocab_size, model.hidden_size];
        let init = candle_nn::init::ZERO; // nothing is initialised
        specs.push(TensorSpec { name: format!("{OUTPUT}.weight"), shape, role: Role::Output, is_bias: false, init });
    }
    for TensorSpec { name, shape, role, is_bias, .. } in specs {
        let suffix = if is_bias { ".bias" } else { ".weight" };
        let Some(matrix) = name.strip_suffix(suffix) else { continue };
        let (module, transposed, rows) = families::location(model, head, matrix);
        if is_bias {
            if let Some(&at) = index.get(&module) {
                modules[at].bias = Some(name);
            }
            continue;
        }
        let part = Part { name: matrix.to_owned(), rows, expert: None };
        let out = rows.map_or(shape[0], |rows| rows.groups * rows.group_len);
        let width = shape.get(1).copied().unwrap_or(0);
        let at = *index.entry(module.clone()).or_insert(modules.len());
        if at == modules.len() {
            let plain = !transposed && rows.is_none();
            modules.push(Module { name: module, out, width, role, plain, parts: Vec::new(), bias: None });
        }
        modules[at].parts.push(part);
    }
    modules
}

/// A parameter of a model in transformers that is not the weight of a linear layer.
#[derive(Debug, Clone)]
pub(super) struct Parameter {
    /// The name of its module.
    pub module: String,
    /// Its name in the module.
    pub name: &'static str,
    /// Output features.
    pub out: usize,
    /// Input features.
    pub width: usize,
    /// The number of experts that it contains; none: it is one matrix.
    pub experts: Option<usize>,
    /// The decoder's matrices that it contains.
    pub parts: Vec<Part>,
}

/// The matrices of all experts and of the routers, which transformers has as parameters since version 5.
pub(super) fn parameters(model: &ModelConfig) -> Vec<Parameter> {
    let mut parameters = Vec::new();
    for layer in 0..model.num_hidden_layers {
        let Some(experts) = model.experts_of(layer) else { continue };
        let (n, inner, width) = (experts.num_experts, experts.moe_intermediate_size, model.hidden_size);
        let module = format!("model.layers.{layer}.mlp");
        let gates: &[(&str, usize)] =
            if model.gated_mlp { &[("gate_proj", 0), ("up_proj", 1)] } else { &[("up_proj", 0)] };
        let all = gates.len() * inner;
        let part = |expert: usize, name: &str, rows| Part {
            name: format!("{module}.experts.{expert}.{name}"),
            rows,
            expert: Some(expert),
        };
        let half = |i: usize| Some(Rows { groups: 1, start: i * inner, len: inner, group_len: all });
        let gate_up = (0..n).flat_map(|e| gates.iter().map(move |&(name, i)| (e, name, i)));
        let (name, of_experts) = ("gate_up_proj", format!("{module}.experts"));
        let parts = gate_up.map(|(e, name, i)| part(e, name, half(i))).collect();
        parameters.push(Parameter { module: of_experts.clone(), name, out: all, width, experts: Some(n), parts });
        let parts = (0..n).map(|e| part(e, "down_proj", None)).collect();
        let name = "down_proj";
        parameters.push(Parameter { module: of_experts, name, out: width, width: inner, experts: Some(n), parts });
        let router = format!("{module}.gate");
        let parts = vec![Part { name: router.clone(), rows: None, expert: None }];
        parameters.push(Parameter { module: router, name: "weight", out: n, width, experts: None, parts });
    }
    parameters
}

impl Module {
    /// Whether it can have an adapter: a linear layer or an embedding.
    pub fn is_adaptable(&self) -> bool {
        self.width > 0 && !self.role.is_norm()
    }

    /// Whether it is an embedding.
    pub fn is_embedding(&self) -> bool {
        matches!(self.role, Role::Embedding | Role::PositionEmbedding)
    }

    /// Whether it is a linear layer of a block that "all-linear" selects as a module.
    pub fn is_linear_of_block(&self) -> bool {
        use Role::{AttentionOutput, Key, Query, Value};
        matches!(self.role, Query | Key | Value | AttentionOutput | Role::Mlp(_))
    }

    /// Whether it is the output layer or the score head.
    pub fn is_head(&self) -> bool {
        matches!(self.role, Role::Output | Role::Score)
    }

    /// Whether its matrix is the embedding or the output layer.
    pub fn has_token_rows(&self) -> bool {
        self.parts.iter().any(|part| [EMBEDDING, OUTPUT].contains(&part.name.as_str()))
    }
}

impl Role {
    /// Whether it is a matrix of an expert.
    pub(super) fn is_expert(self) -> bool {
        matches!(self, Self::Expert(Projection::Gate | Projection::Up | Projection::Down))
    }
}
