//! Rows of token ids on their way into a model.

use candle_core::{Device, Tensor};
use llm_kernels::AttentionMask;

use crate::{Error, Result};

/// Token ids `(b, t)` with the position of each token and the keys that it may see.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `(b, t)`, u32.
    pub input_ids: Tensor,
    /// Position of each token `(b, t)`, counted from the first token of its row that is not padding.
    pub positions: Vec<u32>,
    /// Which earlier tokens each token sees.
    pub visible: AttentionMask,
    /// Which tokens `(b, t)` are padding; none: no token is. They do not count where routers are judged.
    pub padding: Option<Vec<bool>>,
}

impl Batch {
    /// Rows of the same length, without padding.
    pub fn new(rows: &[Vec<u32>]) -> Result<Self> {
        let width = rows.first().map_or(0, Vec::len);
        if width == 0 || rows.iter().any(|row| row.len() != width) {
            return Err(Error::Input("a batch needs rows of one length, at least one token long".to_owned()));
        }
        Self::from_flat(&rows.concat(), width)
    }

    /// Rows of `width` tokens each, laid end to end.
    pub fn from_flat(ids: &[u32], width: usize) -> Result<Self> {
        if width == 0 || ids.is_empty() || !ids.len().is_multiple_of(width) {
            return Err(Error::Input(format!("{} token ids are not a number of rows of {width}", ids.len())));
        }
        let rows = ids.len() / width;
        Ok(Self {
            input_ids: Tensor::from_slice(ids, (rows, width), &Device::Cpu)?,
            positions: (0..rows).flat_map(|_| 0..width as u32).collect(),
            visible: AttentionMask::default(),
            padding: None,
        })
    }

    /// Rows of any length, padded on the right with `pad`. Causality hides the padding from the tokens before it.
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

    /// Rows of any length, padded on the left with `pad`, which no token sees; positions begin after the padding.
    pub fn left_padded(rows: &[Vec<u32>], pad: u32) -> Result<Self> {
        let width = rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut ids = Vec::with_capacity(rows.len() * width);
        for row in rows {
            ids.resize(ids.len() + width - row.len(), pad);
            ids.extend(row);
        }
        let padding: Vec<u32> = rows.iter().map(|row| (width - row.len()) as u32).collect();
        Self::from_flat(&ids, width)?.with_padding(&padding)
    }

    /// The same ids where the first `padding[row]` tokens of each row are padding.
    pub fn with_padding(mut self, padding: &[u32]) -> Result<Self> {
        let (rows, width) = self.input_ids.dims2()?;
        if padding.len() != rows {
            return Err(Error::Input(format!("{rows} rows, but padding for {}", padding.len())));
        }
        self.positions = padding.iter().flat_map(|&p| (0..width as u32).map(move |i| i.saturating_sub(p))).collect();
        self.visible.window_starts = Some(padding.iter().flat_map(|&p| std::iter::repeat_n(p, width)).collect());
        self.padding = Some(padding.iter().flat_map(|&p| (0..width as u32).map(move |i| i < p)).collect());
        Ok(self)
    }

    /// The same ids where in each row no token sees the tokens of one half-open range of columns `hidden[row]`, itself included;
    /// `(0, 0)` hides nothing. For evaluation: what does a prediction depend on?
    pub fn with_masked_keys(mut self, hidden: &[(u32, u32)]) -> Result<Self> {
        let (rows, width) = self.input_ids.dims2()?;
        if hidden.len() != rows {
            return Err(Error::Input(format!("{rows} rows, but hidden ranges for {}", hidden.len())));
        }
        if let Some((row, (start, end))) =
            hidden.iter().enumerate().find(|(_, (start, end))| start > end || *end as usize > width)
        {
            return Err(Error::Input(format!("row {row} hides {start}..{end}; a range must lie within 0..{width}")));
        }
        self.visible.masked_keys = Some(hidden.into());
        Ok(self)
    }

    /// One further token for each row, behind `past` tokens that a cache holds, of which `padding[row]` are padding.
    pub fn step(ids: &[u32], past: usize, padding: &[u32]) -> Result<Self> {
        if ids.len() != padding.len() {
            return Err(Error::Input(format!("{} rows, but padding for {}", ids.len(), padding.len())));
        }
        Ok(Self {
            input_ids: Tensor::from_slice(ids, (ids.len(), 1), &Device::Cpu)?,
            positions: padding.iter().map(|&p| (past as u32).saturating_sub(p)).collect(),
            visible: AttentionMask::from_window_starts(padding),
            padding: None,
        })
    }
}
