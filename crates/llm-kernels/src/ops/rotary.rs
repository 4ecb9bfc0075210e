//! Rotary position embedding (`RoPE`; Su et al. 2021, arXiv 2104.09864), in the half-split layout of Hugging Face
//! checkpoints: elements `i` and `i + rotary_dim / 2` of a head are pair `i`.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::contiguous;
use crate::cpu::rows::zeros;

/// The frequencies of a rotary embedding: pair `i` of a head is rotated by `position · theta^(-2i/d)`.
#[derive(Debug, Clone)]
pub struct RotaryFrequencies {
    inverse_frequencies: Vec<f64>, // (d / 2)
    attention_factor: f64,
}

impl RotaryFrequencies {
    /// Frequencies for `rotary_dim` elements of each head (an even number) and the base `theta`.
    pub fn new(rotary_dim: usize, theta: f64) -> Self {
        let half_dim = rotary_dim / 2;
        let inverse_frequencies = (0..half_dim).map(|i| theta.powf(-(i as f64) / half_dim as f64)).collect();
        Self { inverse_frequencies, attention_factor: 1. }
    }

    /// Given frequencies `(rotary_dim / 2)`. Rotated elements are multiplied by `attention_factor` (`YaRN`, arXiv
    /// 2309.00071; otherwise 1).
    pub fn from_inverse_frequencies(inverse_frequencies: Vec<f64>, attention_factor: f64) -> Self {
        Self { inverse_frequencies, attention_factor }
    }

    /// The rotation angle of each pair per position, in radians.
    pub fn inverse_frequencies(&self) -> &[f64] {
        &self.inverse_frequencies
    }

    /// The table for the given positions, shared by all layers of a forward pass.
    pub fn table(&self, positions: &[u32]) -> RotaryTable {
        let mut rows = Rows::default();
        positions.iter().for_each(|&position| rows.push(self, position));
        rows.into_table(self.inverse_frequencies.len())
    }
}

/// Cosines and sines of some positions, each `(positions, d / 2)`.
#[derive(Debug, Clone, Default)]
struct Rows {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rows {
    fn push(&mut self, frequencies: &RotaryFrequencies, position: u32) {
        for frequency in &frequencies.inverse_frequencies {
            let (sin, cos) = (f64::from(position) * frequency).sin_cos();
            self.cos.push((cos * frequencies.attention_factor) as f32);
            self.sin.push((sin * frequencies.attention_factor) as f32);
        }
    }

    fn into_table(self, half_dim: usize) -> RotaryTable {
        RotaryTable { cos: Arc::new(self.cos), sin: Arc::new(self.sin), half_dim }
    }
}

/// The cosines and sines of all positions from 0 on, computed once for a model: the table grows when a batch has a larger
/// position, and the rows of a batch are copied from it. Clones share the table.
#[derive(Debug, Clone)]
pub struct RotaryCache {
    frequencies: RotaryFrequencies,
    rows: Arc<Mutex<Arc<Rows>>>,
}

impl RotaryCache {
    /// Positions in the table at most; those of larger positions are computed for each batch.
    const MAX_POSITIONS: usize = 1 << 20;

    /// An empty table of these frequencies.
    pub fn new(frequencies: RotaryFrequencies) -> Self {
        Self { frequencies, rows: Arc::default() }
    }

    /// The rotation angle of each pair per position, in radians.
    pub fn inverse_frequencies(&self) -> &[f64] {
        self.frequencies.inverse_frequencies()
    }

    /// [`RotaryFrequencies::table`] with the same bits.
    pub fn table(&self, positions: &[u32]) -> RotaryTable {
        let half_dim = self.frequencies.inverse_frequencies.len();
        let needed = positions.iter().max().map_or(0, |&last| last as usize + 1);
        let rows = self.rows(needed.min(Self::MAX_POSITIONS));
        let size = positions.len() * half_dim;
        let mut batch = Rows { cos: Vec::with_capacity(size), sin: Vec::with_capacity(size) };
        for &position in positions {
            let row = position as usize * half_dim..(position as usize + 1) * half_dim;
            match (rows.cos.get(row.clone()), rows.sin.get(row)) {
                (Some(cos), Some(sin)) => {
                    batch.cos.extend_from_slice(cos);
                    batch.sin.extend_from_slice(sin);
                }
                _ => batch.push(&self.frequencies, position),
            }
        }
        batch.into_table(half_dim)
    }

    /// The table with at least `len` positions.
    fn rows(&self, len: usize) -> Arc<Rows> {
        let half_dim = self.frequencies.inverse_frequencies.len().max(1);
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let known = rows.cos.len() / half_dim;
        if known < len {
            let grown = Arc::make_mut(&mut rows);
            // Twice the size, so that decoding does not copy the table for every token.
            (known..len.next_power_of_two()).for_each(|position| grown.push(&self.frequencies, position as u32));
        }
        rows.clone()
    }
}

/// Cosines and sines `(tokens, d / 2)` of the tokens of one batch; made by [`RotaryFrequencies::table`] and
/// [`RotaryCache::table`].
#[derive(Debug, Clone)]
pub struct RotaryTable {
    cos: Arc<Vec<f32>>,
    sin: Arc<Vec<f32>>,
    half_dim: usize,
}

impl RotaryTable {
    /// The tables of consecutive tokens as one table. The tables rotate the same number of elements of a head.
    pub fn cat(tables: &[Self]) -> Self {
        let rows = Rows {
            cos: tables.iter().flat_map(|table| table.cos.iter().copied()).collect(),
            sin: tables.iter().flat_map(|table| table.sin.iter().copied()).collect(),
        };
        rows.into_table(tables.first().map_or(0, |table| table.half_dim))
    }

    /// True if the table has this number of tokens and does not rotate more elements than a head has.
    pub(crate) fn fits(&self, tokens: usize, head_dim: usize) -> bool {
        head_dim >= 2 * self.half_dim && tokens * self.half_dim == self.cos.len()
    }

    /// Applies the embedding to the heads of one token: `x` and `y` are `(heads, head_dim)`.
    pub(crate) fn rotate(&self, token: usize, head_dim: usize, x: &[f32], y: &mut [f32]) {
        self.rotate_by(token, head_dim, 1., x, y);
    }

    /// The gradient of `x` in [`Self::rotate`] from that of `y`: the transpose of a rotation is the rotation by the
    /// negative angle.
    pub(crate) fn rotate_back(&self, token: usize, head_dim: usize, dy: &[f32], dx: &mut [f32]) {
        self.rotate_by(token, head_dim, -1., dy, dx);
    }

    fn rotate_by(&self, token: usize, head_dim: usize, sign: f32, x: &[f32], y: &mut [f32]) {
        let [cos, sin] = [&self.cos, &self.sin].map(|table| &table[token * self.half_dim..(token + 1) * self.half_dim]);
        rotate(x, head_dim, [cos, sin], sign, y);
    }
}

/// Applies the rotary embedding to each head of `x` `(b, t, h, d)`; `rotation` has `b · t` tokens in order.
///
/// With a partial rotary embedding the first elements of each head are rotated, the others are copied. It is an error
/// if `rotation` is for other sizes.
pub fn rope(x: &Tensor, rotation: &RotaryTable) -> Result<Tensor> {
    let (b, t, _h, d) = x.dims4()?;
    if !rotation.fits(b * t, d) {
        bail!(
            "rope: x is {:?}, the table has {} cosines and rotates {} elements of each head",
            x.dims(),
            rotation.cos.len(),
            rotation.half_dim * 2
        );
    }
    if crate::is_fused(x) {
        x.contiguous()?.apply_op1(Rope { rotation: rotation.clone(), head_dim: d, sign: 1. })
    } else {
        reference(x, rotation)
    }
}

fn reference(x: &Tensor, rotation: &RotaryTable) -> Result<Tensor> {
    let (b, t, _h, d) = x.dims4()?;
    let half_dim = rotation.half_dim;
    if half_dim == 0 {
        return Ok(x.clone());
    }
    let table = |data: &Vec<f32>| Tensor::from_slice(data, (b, t, 1, half_dim), x.device())?.to_dtype(x.dtype());
    let (cos, sin) = (table(&rotation.cos)?, table(&rotation.sin)?);
    let rotated = x.narrow(D::Minus1, 0, 2 * half_dim)?;
    let (x1, x2) = (rotated.narrow(D::Minus1, 0, half_dim)?, rotated.narrow(D::Minus1, half_dim, half_dim)?);
    let y1 = (x1.broadcast_mul(&cos)? - x2.broadcast_mul(&sin)?)?;
    let y2 = (x2.broadcast_mul(&cos)? + x1.broadcast_mul(&sin)?)?;
    let y = Tensor::cat(&[y1, y2], D::Minus1)?;
    match d - 2 * half_dim {
        0 => Ok(y),
        rest => Tensor::cat(&[y, x.narrow(D::Minus1, 2 * half_dim, rest)?], D::Minus1),
    }
}

struct Rope {
    rotation: RotaryTable,
    head_dim: usize,
    sign: f32,
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(storage, layout)?;
        let mut y = zeros(x.len());
        let tokens = self.rotation.cos.len() / self.rotation.half_dim.max(1);
        let row = x.len() / tokens.max(1); // h · d elements of one token
        if row > 0 {
            y.par_chunks_mut(row).zip(x.par_chunks(row)).enumerate().with_min_len(32).for_each(|(token, (y, x))| {
                self.rotation.rotate_by(token, self.head_dim, self.sign, x, y);
            });
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    // The gradient is rotated by the negative angle; the attention factor is the same.
    fn bwd(&self, _x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let back = Rope { rotation: self.rotation.clone(), head_dim: self.head_dim, sign: -self.sign };
        dy.contiguous()?.apply_op1_no_bwd(&back).map(Some)
    }
}

#[pulp::with_simd(rotate = crate::cpu::unit::arch())]
#[inline(always)]
fn rotate_simd<'a, S: pulp::Simd>(
    _simd: S,
    x: &'a [f32],
    head_dim: usize,
    [cos, sin]: [&'a [f32]; 2],
    sign: f32,
    y: &'a mut [f32],
) {
    let half_dim = cos.len();
    for (x, y) in x.chunks_exact(head_dim).zip(y.chunks_exact_mut(head_dim)) {
        let ((x, pass_through), (y, rest)) = (x.split_at(2 * half_dim), y.split_at_mut(2 * half_dim));
        let ((x1, x2), (y1, y2)) = (x.split_at(half_dim), y.split_at_mut(half_dim));
        let pairs_out = y1.iter_mut().zip(y2).zip(x1.iter().zip(x2)).zip(cos.iter().zip(sin));
        for (((y1, y2), (x1, x2)), (cos, sin)) in pairs_out {
            *y1 = x1 * cos - x2 * sin * sign;
            *y2 = x2 * cos + x1 * sin * sign;
        }
        rest.copy_from_slice(pass_through);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_matches_reference, random};

    #[test]
    fn fused_rope_equals_the_f64_reference() -> Result<()> {
        let rotary = RotaryFrequencies::new(6, 10_000.);
        let rotation = rotary.table(&[0, 1, 2, 3, 0, 0, 1000, 1001]);
        let x = random(&[2, 4, 3, 6], 1, 1.)?;
        assert_matches_reference(&[&x], 1e-6, |t| rope(&t[0], &rotation))?;
        let x = random(&[2, 3, 4, 6], 1, 1.)?;
        assert_matches_reference(&[&x], 1e-6, |t| rope(&t[0].transpose(1, 2)?, &rotation))?;
        // The first four of ten elements are rotated and scaled.
        let partial =
            RotaryFrequencies::from_inverse_frequencies(vec![1., 0.2], 1.25).table(&[0, 1, 2, 3, 0, 0, 1000, 1001]);
        let x = random(&[2, 4, 3, 10], 1, 1.)?;
        assert_matches_reference(&[&x], 1e-6, |t| rope(&t[0], &partial))?;
        let rest = |x: &Tensor| x.narrow(3, 4, 6)?.flatten_all()?.to_vec1::<f32>();
        assert_eq!(rest(&rope(&x, &partial)?)?, rest(&x)?);
        assert!(rope(&random(&[2, 4, 3, 2], 1, 1.)?, &partial).is_err(), "heads of two elements do not have two pairs");
        Ok(())
    }

    #[test]
    fn the_grown_table_has_the_bits_of_a_table_of_the_batch() {
        let frequencies = RotaryFrequencies::from_inverse_frequencies(vec![1., 0.2, 0.03], 1.25);
        let cache = RotaryCache::new(frequencies.clone());
        let far = RotaryCache::MAX_POSITIONS as u32;
        for positions in [vec![0, 1, 2], vec![7, 0, 7], vec![], vec![1000, 3], vec![far - 1, far, far + 5, 2]] {
            let (ours, expected) = (cache.clone().table(&positions), frequencies.table(&positions));
            assert_eq!((&ours.cos, &ours.sin), (&expected.cos, &expected.sin), "{positions:?}");
        }
        assert_eq!(cache.rows(0).cos.len(), RotaryCache::MAX_POSITIONS * 3, "clones share the table");
        let parts = [&[5, 6][..], &[0]].map(|positions| cache.table(positions));
        assert_eq!(RotaryTable::cat(&parts).cos, cache.table(&[5, 6, 0]).cos);
    }

    #[test]
    fn the_dot_product_of_two_rotated_heads_depends_only_on_their_distance() -> Result<()> {
        let rotary = RotaryFrequencies::new(8, 10_000.);
        let (q, k) = (random(&[1, 1, 1, 8], 1, 1.)?, random(&[1, 1, 1, 8], 2, 1.)?);
        let score = |i, j| -> Result<f32> {
            (rope(&q, &rotary.table(&[i]))? * rope(&k, &rotary.table(&[j]))?)?.sum_all()?.to_scalar::<f32>()
        };
        assert!((score(5, 2)? - score(105, 102)?).abs() < 1e-5);
        assert!((score(5, 2)? - score(5, 3)?).abs() > 1e-3);
        Ok(())
    }
}
