//! The weights below a path, as in candle's `VarBuilder`: `w.pp("self_attn").pp("q_proj")`.

use std::fmt::Display;

use candle_core::Tensor;

use crate::weight::Weight;
use crate::{Params, Result};

/// The weights of a model whose names begin with a path.
#[derive(Debug, Clone)]
pub(crate) struct WeightPath<'a> {
    /// The weights of the model.
    pub params: &'a Params,
    path: String,
}

impl Params {
    /// The path of all weights.
    pub(crate) fn root(&self) -> WeightPath<'_> {
        WeightPath { params: self, path: String::new() }
    }
}

impl<'a> WeightPath<'a> {
    /// The path with `name` appended.
    pub fn pp(&self, name: impl Display) -> Self {
        Self { params: self.params, path: self.full(name) }
    }

    /// The path, such as `model.layers.0.self_attn.q_proj`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The weight `name` here; an error if it is missing.
    pub fn get(&self, name: &str) -> Result<&'a Weight> {
        self.params.get(&self.full(name))
    }

    /// The trainable or dense tensor `name` here; an error if it is missing.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        self.params.tensor(&self.full(name))
    }

    /// Whether there is a weight `name` here.
    pub fn contains(&self, name: &str) -> bool {
        self.params.contains(&self.full(name))
    }

    fn full(&self, name: impl Display) -> String {
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }
}
