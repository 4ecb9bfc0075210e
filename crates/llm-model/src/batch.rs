//! Batches of token ids with positions and attention mask.

use candle_core::{Device, Tensor};
use llm_kernels::{AttentionMask, Dropout};

use crate::{Error, Result};

/// Token ids with the position and the attention mask of each token. The rows have t tokens each, or in a ragged batch any
/// number of tokens.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `(b, t)`, u32, in CPU memory (a model copies them to its device); of a ragged batch `(1, n)`, the concatenated rows.
    pub input_ids: Tensor,
    /// The number of tokens of each row of a ragged batch; none: t.
    pub row_lens: Option<Vec<usize>>,
    /// Position of each token, `b·t` or n values, counted from the first non-padding token of its row.
    pub positions: Vec<u32>,
    /// The attention mask in addition to the causal mask.
    pub mask: AttentionMask,
    /// Whether each token is padding, `b·t` values; none: no padding. The router losses ignore padding.
    pub padding: Option<Vec<bool>>,
    /// Values that are added to the token embeddings, `(b·t, hidden)` or `(n, hidden)`, f32; none: nothing is added.
    pub embedding_noise: Option<Tensor>,
    /// The seed of the dropout of a trained adapter ([`crate::LoraConfig::lora_dropout`]); none: no dropout.
    pub dropout: Option<u64>,
    /// Dropout of the embeddings and of what each attention and MLP adds to the residual stream, as in GPT-2 (without dropout of the
    /// attention weights); none: no dropout.
    pub residual_dropout: Option<Dropout>,
}

impl Batch {
    /// A batch of rows of equal length, without padding. An error if it is empty or the lengths differ.
    pub fn new(rows: &[Vec<u32>]) -> Result<Self> {
        let width = rows.first().map_or(0, Vec::len);
        if width == 0 || rows.iter().any(|row| row.len() != width) {
            return Err(Error::Input("a batch needs rows of equal length with at least one token".to_owned()));
        }
        Self::from_flat(&rows.concat(), width)
    }

    /// A batch from concatenated rows of `width` tokens each.
    pub fn from_flat(ids: &[u32], width: usize) -> Result<Self> {
        if width == 0 || ids.is_empty() || !ids.len().is_multiple_of(width) {
            return Err(Error::Input(format!("{} token ids are not a multiple of the row length {width}", ids.len())));
        }
        let rows = ids.len() / width;
        Ok(Self {
            input_ids: Tensor::from_slice(ids, (rows, width), &Device::Cpu)?,
            row_lens: None,
            positions: (0..rows).flat_map(|_| 0..width as u32).collect(),
            mask: AttentionMask::default(),
            padding: None,
            embedding_noise: None,
            dropout: None,
            residual_dropout: None,
        })
    }

    /// Rows of any length, padded on the right with `pad`. The causal mask already hides right padding.
    pub fn right_padded(rows: &[Vec<u32>], pad: u32) -> Result<Self> {
        let width = rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut ids = Vec::with_capacity(rows.len() * width);
        for row in rows {
            ids.extend(row);
            ids.resize(ids.len() + width - row.len(), pad);
        }
        let mut batch = Self::from_flat(&ids, width)?;
        batch.padding = Some(rows.iter().flat_map(|row| (0..width).map(|i| i >= row.len())).collect());
        Ok(batch)
    }

    /// A ragged batch: rows of any length without padding. `past[row]` is the number of earlier tokens of the row, those in
    /// the KV cache ([`crate::KvCache::lens`]), or 0. Rows can be empty, but not all. A row gets what it gets alone.
    pub fn ragged<R: AsRef<[u32]>>(rows: &[R], past: &[usize]) -> Result<Self> {
        if rows.len() != past.len() {
            return Err(Error::Input(format!("{} rows, but lengths of earlier tokens for {}", rows.len(), past.len())));
        }
        let ids: Vec<u32> = rows.iter().flat_map(AsRef::as_ref).copied().collect();
        if ids.is_empty() {
            return Err(Error::Input("a batch needs at least one token".to_owned()));
        }
        let row_lens: Vec<usize> = rows.iter().map(|row| row.as_ref().len()).collect();
        let positions = past.iter().zip(&row_lens).flat_map(|(&past, &len)| (past..past + len).map(|i| i as u32));
        Ok(Self {
            input_ids: Tensor::from_slice(&ids, (1, ids.len()), &Device::Cpu)?,
            positions: positions.collect(),
            row_lens: Some(row_lens),
            mask: AttentionMask::default(),
            padding: None,
            embedding_noise: None,
            dropout: None,
            residual_dropout: None,
        })
    }

    /// Applies the dropout of a trained adapter, with masks that depend on `seed` only.
    #[must_use]
    pub fn with_dropout(self, seed: u64) -> Self {
        Self { dropout: Some(seed), ..self }
    }

    /// The number of tokens of each row.
    pub(crate) fn lens(&self) -> Result<Vec<usize>> {
        let (b, t) = self.input_ids.dims2()?;
        Ok(self.row_lens.clone().unwrap_or_else(|| vec![t; b]))
    }

    /// The rows and their common length; an error if the batch is ragged.
    fn rows_of_equal_length(&self) -> Result<(usize, usize)> {
        match self.row_lens {
            None => Ok(self.input_ids.dims2()?),
            Some(_) => Err(Error::Input("the batch is ragged; it must have rows of equal length".to_owned())),
        }
    }

    /// Marks the first `padding[row]` tokens of each row as padding.
    pub fn with_padding(mut self, padding: &[u32]) -> Result<Self> {
        let (rows, width) = self.rows_of_equal_length()?;
        if padding.len() != rows {
            return Err(Error::Input(format!("{rows} rows, but padding for {}", padding.len())));
        }
        self.positions = padding.iter().flat_map(|&p| (0..width as u32).map(move |i| i.saturating_sub(p))).collect();
        self.mask.window_starts = Some(padding.iter().flat_map(|&p| std::iter::repeat_n(p, width)).collect());
        self.padding = Some(padding.iter().flat_map(|&p| (0..width as u32).map(move |i| i < p)).collect());
        Ok(self)
    }

    /// Masks in each row the keys of one half-open range of columns, `masked[row]`, for all queries; `(0, 0)` masks nothing.
    ///
    /// For ablations in evaluation: they show which tokens a prediction depends on.
    pub fn with_masked_keys(mut self, masked: &[(u32, u32)]) -> Result<Self> {
        let (rows, width) = self.rows_of_equal_length()?;
        if masked.len() != rows {
            return Err(Error::Input(format!("{rows} rows, but masked ranges for {}", masked.len())));
        }
        if let Some((row, (start, end))) =
            masked.iter().enumerate().find(|(_, (start, end))| start > end || *end as usize > width)
        {
            return Err(Error::Input(format!("row {row} masks {start}..{end}; a range must be within 0..{width}")));
        }
        self.mask.masked_keys = Some(masked.into());
        Ok(self)
    }
}
