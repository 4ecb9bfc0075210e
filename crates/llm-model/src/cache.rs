//! Keys and values of the tokens that a model has already read.

use candle_core::{DType, Device, Tensor};

use crate::{Error, ModelConfig, Result};

/// Keys and values of every layer, `(b, g, capacity, d)` each, so that a head reads its own one behind the other; they are
/// filled from the front.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    capacity: usize,
    len: usize,
}

impl KvCache {
    /// Room for `capacity` tokens in each of `rows` rows.
    pub fn new(config: &ModelConfig, rows: usize, capacity: usize) -> Result<Self> {
        let shape = (rows, config.num_key_value_heads, capacity, config.head_dim);
        let zeros = || Tensor::zeros(shape, DType::F32, &Device::Cpu);
        let layers = (0..config.num_hidden_layers).map(|_| Ok((zeros()?, zeros()?))).collect::<Result<_>>()?;
        Ok(Self { layers, capacity, len: 0 })
    }

    /// Tokens held, padding included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes of its tensors, filled or not.
    pub fn bytes(&self) -> usize {
        let of = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        self.layers.iter().map(|(keys, values)| of(keys) + of(values)).sum()
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes the keys and values `(b, t, g, d)` of one layer behind those held, and returns all of them, `(b, s, g, d)`.
    pub(crate) fn append(&self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let t = k.dim(1)?;
        if self.len + t > self.capacity {
            let (len, capacity) = (self.len, self.capacity);
            return Err(Error::Input(format!(
                "the cache holds {len} tokens and has room for {capacity}, not {t} more"
            )));
        }
        let (keys, values) = &self.layers[layer];
        for (all, new) in [(keys, k), (values, v)] {
            all.slice_set(&new.transpose(1, 2)?.contiguous()?, 2, self.len)?;
        }
        let held = |all: &Tensor| all.narrow(2, 0, self.len + t)?.transpose(1, 2);
        Ok((held(keys)?, held(values)?))
    }

    /// Counts `t` tokens as held, once every layer has appended them.
    pub(crate) fn advance(&mut self, t: usize) {
        self.len += t;
    }
}
