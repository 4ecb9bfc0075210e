//! Embeddings: a row of a matrix for each id.

use candle_core::{Result, Tensor};
use candle_nn::Module;

use crate::lora::EmbeddingLora;
use crate::weight::Weight;
use crate::weight_path::WeightPath;

/// The embedding of tokens or of positions.
#[derive(Debug, Clone)]
pub(crate) struct Embedding {
    weight: Weight, // (ids, hidden)
    lora: Vec<EmbeddingLora>,
}

impl Embedding {
    pub fn new(w: &WeightPath) -> crate::Result<Self> {
        let lora = w.params.adapters().iter().filter_map(|adapter| EmbeddingLora::new(adapter, w.path())).collect();
        Ok(Self { weight: w.get("weight")?.clone(), lora })
    }
}

/// Ids `(n,)` to rows `(n, hidden)` in f32 or f64.
impl Module for Embedding {
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let rows = self.weight.gather_rows(ids)?;
        self.lora.iter().try_fold(rows, |rows, lora| rows + lora.rows(ids)?)
    }
}
