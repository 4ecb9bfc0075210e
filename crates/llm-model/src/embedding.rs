//! Embeddings: a row of a matrix for each id.

use candle_core::{Result, Tensor};
use candle_nn::Module;

use crate::weight::Weight;
use crate::weight_path::WeightPath;

/// The embedding of tokens or of positions.
#[derive(Debug, Clone)]
pub(crate) struct Embedding {
    pub weight: Weight, // (ids, hidden)
}

impl Embedding {
    pub fn new(w: &WeightPath) -> crate::Result<Self> {
        Ok(Self { weight: w.get("weight")?.clone() })
    }
}

/// Ids `(n,)` to rows `(n, hidden)` in f32 or f64.
impl Module for Embedding {
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        self.weight.gather_rows(ids)
    }
}
