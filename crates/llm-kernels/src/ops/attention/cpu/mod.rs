//! Attention on the CPU in f32: [`flash`] for training and prefill, [`decode`] for one query.

mod call;
mod decode;
mod flash;
mod heads;
mod row_by_row;
mod softmax;

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

pub(crate) use call::FlashAttention;
pub(crate) use heads::{GroupWriters, Heads};
pub(super) use softmax::online_softmax_update;

use super::Dims;
use crate::cpu::uninit::write_heads;

/// [`super::attention`] of `q`, `k` and `v`.
pub(super) fn attention([q, k, v]: [&Tensor; 3], flash: FlashAttention) -> Result<Tensor> {
    let rows = |x: &Tensor| if x.stride().last() == Some(&1) { Ok(x.clone()) } else { x.contiguous() };
    rows(q)?.apply_op3(&rows(k)?, &rows(v)?, Attention { flash, lse: OnceLock::new() })
}

struct Attention {
    flash: FlashAttention,
    /// The log-sum-exp of the scores, from which the backward recomputes the weights: `(h, t)` of each sequence.
    lse: OnceLock<Vec<f32>>,
}

/// Bytes that attention saves for its backward, apart from its inputs and its result: the log-sum-exp of `tokens` queries
/// of `heads` heads.
pub fn saved_bytes(tokens: usize, heads: usize) -> usize {
    4 * tokens * heads
}

fn f32s(storage: &CpuStorage) -> Result<&[f32]> {
    match storage {
        CpuStorage::F32(data) => Ok(data),
        _ => bail!("attention: the fused path needs f32"),
    }
}

fn heads<'a>(storage: &'a Storage, layout: &Layout, d: usize) -> Result<Heads<'a>> {
    match storage {
        Storage::Cpu(storage) => Ok(Heads::of(f32s(storage)?, layout, d)),
        _ => bail!("attention: a tensor is not in CPU memory"),
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        qs: &CpuStorage,
        ql: &Layout,
        ks: &CpuStorage,
        kl: &Layout,
        vs: &CpuStorage,
        vl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (Dims { b, s, h, g, d, .. }, n) = (self.flash.dims, self.flash.queries());
        if n * h * d == 0 {
            return self.save(vec![0.; n * h], Vec::new(), ql);
        }
        let q = Heads::of(f32s(qs)?, ql, d).ragged(self.flash.cu_seqlens());
        let k = Heads::of(f32s(ks)?, kl, d);
        let v = Heads::of(f32s(vs)?, vl, d);
        let spans = s.div_ceil(decode::SPAN);
        let queries = |b| self.flash.lens(b).0;
        if (0..b).all(|b| queries(b) <= 1) {
            // Decoding: one task per sequence, key/value head and span of keys.
            let sequences: Vec<usize> = (0..b).filter(|&b| queries(b) == 1).collect();
            let heads = |i: usize| i / spans % g * (h / g)..(i / spans % g + 1) * (h / g);
            let task = |i| self.flash.decode_span([q, k, v], sequences[i / spans / g], heads(i), i % spans);
            let parts: Vec<_> = (0..n * g * spans).into_par_iter().map(task).collect();
            let (out, lse): (Vec<_>, Vec<_>) = parts.chunks(spans).map(decode::merge_spans).unzip();
            return self.save(lse.concat(), out.concat(), ql);
        }
        let (out, lse) = self.flash.forward(|b, head, out| match queries(b) {
            1 => {
                let parts = (0..spans).map(|span| self.flash.decode_span([q, k, v], b, head..head + 1, span));
                let (row, lse) = decode::merge_spans(&parts.collect::<Vec<_>>());
                out.append(&row);
                lse
            }
            _ => self.flash.forward_head([q, k, v], b, head, out),
        });
        self.save(lse, out, ql)
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Dims { b, s, h, g, d, .. } = self.flash.dims;
        if self.flash.queries() * h * d == 0 {
            return Ok((Some(q.zeros_like()?), Some(k.zeros_like()?), Some(v.zeros_like()?)));
        }
        let grad = grad.contiguous()?;
        let ((qs, ql), (ks, kl), (vs, vl)) = (q.storage_and_layout(), k.storage_and_layout(), v.storage_and_layout());
        let ((os, ol), (gs, gl)) = (out.storage_and_layout(), grad.storage_and_layout());
        let Some(lse) = self.lse.get() else { bail!("attention: backward ran before forward") };
        let cu_seqlens = self.flash.cu_seqlens();
        let inputs = [heads(&qs, ql, d)?.ragged(cu_seqlens), heads(&ks, kl, d)?, heads(&vs, vl, d)?];
        let (out, grad) = (heads(&os, ol, d)?.ragged(cu_seqlens), heads(&gs, gl, d)?.ragged(cu_seqlens));
        let (mut dk, mut dv) = (Vec::new(), Vec::new());
        let dq = write_heads(&self.flash.query_lens(), h, d, |dq| {
            dk = write_heads(&vec![s; b], g, d, |dk| {
                dv = write_heads(&vec![s; b], g, d, |dv| {
                    let gradients = GroupWriters::collect(&self.flash.dims, dq, dk, dv);
                    self.flash.backward(inputs, out, grad, lse, gradients, None);
                });
            });
        });
        let tensor = |data: Vec<f32>, like: &Tensor| Tensor::from_vec(data, like.shape(), &Device::Cpu).map(Some);
        Ok((tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?))
    }
}

impl Attention {
    /// Saves the tensor for the backward and returns the result.
    fn save(&self, lse: Vec<f32>, out: Vec<f32>, queries: &Layout) -> Result<(CpuStorage, Shape)> {
        if self.lse.set(lse).is_err() {
            bail!("attention: an operation runs only once");
        }
        Ok((CpuStorage::F32(out), queries.shape().clone()))
    }
}
