//! The KV cache.

use candle_core::{DType, Device, Tensor};
use llm_kernels::Sequences;

use crate::{Error, ModelConfig, Result};

/// Keys and values of every layer, each `(b, g, capacity, d)`: contiguous per head and filled from the front. Each row has
/// its own number of tokens.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    capacity: usize,
    lens: Vec<usize>,
}

impl KvCache {
    /// An empty cache for `rows` rows of at most `capacity` tokens, on the device of the model ([`crate::Model::device`]).
    pub fn new(config: &ModelConfig, rows: usize, capacity: usize, device: &Device) -> Result<Self> {
        let shape = (rows, config.num_key_value_heads, capacity, config.head_dim);
        let zeros = || Tensor::zeros(shape, DType::F32, device);
        let layers = (0..config.num_hidden_layers).map(|_| Ok((zeros()?, zeros()?))).collect::<Result<_>>()?;
        Ok(Self { layers, capacity, lens: vec![0; rows] })
    }

    /// A cache with these keys and values and numbers of tokens.
    pub(crate) fn from_layers(layers: Vec<(Tensor, Tensor)>, capacity: usize, lens: Vec<usize>) -> Self {
        Self { layers, capacity, lens }
    }

    /// Number of cached tokens of each row.
    pub fn lens(&self) -> &[usize] {
        &self.lens
    }

    /// Allocated bytes.
    pub fn bytes(&self) -> usize {
        let of = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        self.layers.iter().map(|(keys, values)| of(keys) + of(values)).sum()
    }

    /// The sequences of a batch that appends `row_lens[row]` tokens to each row. An error if they do not fit.
    pub(crate) fn sequences(&self, row_lens: &[usize]) -> Result<Sequences> {
        if row_lens.len() != self.lens.len() {
            let (rows, cached) = (row_lens.len(), self.lens.len());
            return Err(Error::Input(format!("the batch has {rows} rows; the KV cache has {cached}")));
        }
        let lens = || self.lens.iter().copied().zip(row_lens.iter().copied());
        let capacity = self.capacity;
        if let Some((len, t)) = lens().find(|(len, t)| len + t > capacity) {
            return Err(Error::Input(format!("the KV cache has {len} of {capacity} tokens; {t} more do not fit")));
        }
        Ok(Sequences::new(lens()))
    }

    /// The keys and values of one layer.
    pub(crate) fn layer(&self, layer: usize) -> (&Tensor, &Tensor) {
        let (keys, values) = &self.layers[layer];
        (keys, values)
    }

    /// Adds the tokens of a batch to the lengths, after every layer has appended them.
    pub(crate) fn advance(&mut self, sequences: &Sequences) {
        self.lens = (0..sequences.len()).map(|row| sequences.keys(row)).collect();
    }
}
