//! The KV cache.

use candle_core::{DType, Device, Tensor};

use crate::{Error, ModelConfig, Result};

/// Keys and values of every layer, each `(b, g, capacity, d)`: contiguous per head and filled from the front.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    capacity: usize,
    len: usize,
}

impl KvCache {
    /// An empty cache for `rows` rows of at most `capacity` tokens.
    pub fn new(config: &ModelConfig, rows: usize, capacity: usize) -> Result<Self> {
        let shape = (rows, config.num_key_value_heads, capacity, config.head_dim);
        let zeros = || Tensor::zeros(shape, DType::F32, &Device::Cpu);
        let layers = (0..config.num_hidden_layers).map(|_| Ok((zeros()?, zeros()?))).collect::<Result<_>>()?;
        Ok(Self { layers, capacity, len: 0 })
    }

    /// Number of cached tokens per row, padding included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Allocated bytes.
    pub fn bytes(&self) -> usize {
        let of = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        self.layers.iter().map(|(keys, values)| of(keys) + of(values)).sum()
    }

    /// Whether no token is cached.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends the keys and values `(b, t, g, d)` of one layer and returns all cached ones, `(b, s, g, d)`.
    pub(crate) fn append(&self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let t = k.dim(1)?;
        if self.len + t > self.capacity {
            let (len, capacity) = (self.len, self.capacity);
            return Err(Error::Input(format!("the KV cache has {len} of {capacity} tokens; {t} more do not fit")));
        }
        let (keys, values) = &self.layers[layer];
        for (all, new) in [(keys, k), (values, v)] {
            all.slice_set(&new.transpose(1, 2)?.contiguous()?, 2, self.len)?;
        }
        let cached = |all: &Tensor| all.narrow(2, 0, self.len + t)?.transpose(1, 2);
        Ok((cached(keys)?, cached(values)?))
    }

    /// Advances the length by `t` tokens, after every layer has appended them.
    pub(crate) fn advance(&mut self, t: usize) {
        self.len += t;
    }
}
