//! Attention for inputs with infinite or NaN values: masked keys and values must not reach a result.
//!
//! The blockwise matmuls multiply masked keys and values by a weight of 0, and 0 times infinity is NaN. Here each
//! query is multiplied only with the keys it attends to. This is slow and runs only if such a value is present.

use super::call::FlashAttention;
use super::decode;
use super::heads::{GroupWriters, Heads, rotate_rows_back};
use crate::cpu::gemm::{Element, GemmElement, Matrix};
use crate::cpu::simd::{exp, tanh};
use crate::cpu::uninit::HeadWriter;
use crate::ops::attention::Dims;
use crate::ops::rotary::RotaryTable;

/// True if blockwise matmuls are correct: every value is finite, also in bf16.
pub fn all_finite<T: Element>(rows: Matrix<T>) -> bool {
    T::all_finite_as_bf16(rows)
}

/// A matrix in f32, row-major.
fn to_f32<T: Element>(rows: Matrix<T>) -> Vec<f32> {
    (0..rows.rows()).flat_map(|i| rows.row(i).iter().map(|x| x.widen())).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f32], x: &[f32], factor: f32) {
    to.iter_mut().zip(x).for_each(|(to, x)| *to += x * factor);
}

impl FlashAttention {
    /// [`FlashAttention::forward`] of one query head: writes the results and returns the log-sum-exp of the scores
    /// `(t,)`.
    pub(super) fn forward_head_row_by_row<T: Element>(
        &self,
        [q, k, v]: [Heads<T>; 3],
        b: usize,
        head: usize,
        to: &mut HeadWriter<f32>,
    ) -> Vec<f32> {
        let (Dims { h, g, d, .. }, (t, s)) = (self.dims, self.lens(b));
        let group = head / (h / g);
        let (q, k, v) =
            (to_f32(q.block(b, 0..t, head)), to_f32(k.block(b, 0..s, group)), to_f32(v.block(b, 0..s, group)));
        let mut lse = vec![0f32; t];
        for (i, (q, lse_i)) in q.chunks_exact(d).zip(&mut lse).enumerate() {
            let (start, end) = self.mask.range(b, i, t, s);
            let [k, v] = [&k, &v].map(|x| Matrix::new(&x[start * d..end * d], end - start, d));
            let (row, sums) = decode::decode(&[q], k, v, &self.params);
            if start < end {
                *lse_i = sums[0];
            }
            to.append(&row);
        }
        lse
    }

    /// [`FlashAttention::backward`] of one key/value head.
    pub(super) fn backward_group_row_by_row<T: GemmElement, G: GemmElement>(
        &self,
        ([q, k, v], out, grad): ([Heads<T>; 3], Heads, Heads<T>),
        lse: &[f32],
        (b, group): (usize, usize),
        to: &mut GroupWriters<G>,
        rotation: Option<&RotaryTable>,
    ) {
        let (Dims { s, h, g, d, .. }, (t, len)) = (self.dims, self.lens(b));
        let (scale, cap) = (self.params.scale as f32, self.params.soft_cap());
        let (k, v) = (to_f32(k.block(b, 0..len, group)), to_f32(v.block(b, 0..len, group)));
        let (mut dk, mut dv) = (vec![0f32; s * d], vec![0f32; s * d]); // zeros after the last key
        let heads = if t == 0 { 0..0 } else { group * (h / g)..(group + 1) * (h / g) };
        for (head, to_q) in heads.zip(&mut to.q) {
            let (q, grad) = (to_f32(q.block(b, 0..t, head)), to_f32(grad.block(b, 0..t, head)));
            let mut dq = vec![0f32; t * d];
            for (i, dq) in dq.chunks_exact_mut(d).enumerate() {
                let (q, grad) = (&q[i * d..(i + 1) * d], &grad[i * d..(i + 1) * d]);
                let (mean, lse_i) =
                    (dot(out.row(b, i, head), grad), lse[self.mask.first_query(b, t) * h + head * t + i]);
                let (start, end) = self.mask.range(b, i, t, len);
                for j in start..end {
                    let key = j * d..(j + 1) * d;
                    let (mut score, mut slope) = (dot(q, &k[key.clone()]) * scale, scale);
                    if cap > 0. {
                        let y = tanh(score / cap);
                        (score, slope) = (cap * y, scale * (1. - y * y));
                    }
                    let p = exp(score - lse_i);
                    let ds = p * (dot(grad, &v[key.clone()]) - mean) * slope;
                    add(dq, &k[key.clone()], ds);
                    add(&mut dk[key.clone()], q, ds);
                    add(&mut dv[key], grad, p);
                }
            }
            to_q.append(rotate_rows_back(rotation, b * t, d, &mut dq));
        }
        to.k.append(rotate_rows_back(rotation, b * s, d, &mut dk));
        to.v.append(&dv);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, IndexOp, Result, Tensor, Var};

    use crate::testing::random;
    use crate::{
        AttentionBlock, AttentionMask, AttentionParams, Norm, Precision, Projection, attention, attention_block,
    };

    const NON_FINITE: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    const D: usize = 8;

    /// `x` `(b, s, g, d)` with one value of token `at` of the first sequence replaced, in each head.
    fn broken(x: &Tensor, at: usize, value: f32) -> Tensor {
        let (b, s, g, d) = x.dims4().unwrap();
        let mut flat = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for head in 0..g {
            flat[(at * g + head) * d + 3] = value;
        }
        Tensor::from_vec(flat, (b, s, g, d), x.device()).unwrap()
    }

    /// The result `(b, t, h, d)` and the gradients of queries, keys and values.
    fn run(inputs: [&Tensor; 3], params: AttentionParams, mask: &AttentionMask, dtype: DType) -> Result<[Tensor; 4]> {
        let vars = inputs.map(|x| Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap());
        let y = attention(&vars[0], &vars[1], &vars[2], params, mask)?;
        let grads = (&y * random(y.dims(), 9, 1.)?.to_dtype(dtype)?)?.sum_all()?.backward()?;
        let [dq, dk, dv] = [0, 1, 2].map(|i| grads.get(&vars[i]).unwrap().to_dtype(DType::F32).unwrap());
        Ok([y.to_dtype(DType::F32)?, dq, dk, dv])
    }

    fn flat(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Tokens `from..to` of the first sequence, and the whole second sequence.
    fn rows(x: &Tensor, from: usize, to: usize) -> Vec<f32> {
        [flat(&x.i((0, from..to)).unwrap()), flat(&x.i(1).unwrap())].concat()
    }

    fn assert_close(ours: &[f32], theirs: &[f32], tolerance: f32, what: &str) {
        let scale = theirs.iter().fold(0f32, |a, b| a.max(b.abs())).max(0.1);
        for (ours, theirs) in ours.iter().zip(theirs) {
            assert!((ours - theirs).abs() <= tolerance * scale, "{what}: {ours} is not {theirs}");
        }
    }

    /// A mask, the token whose key or value is broken, and the rows of the first sequence that do not attend to it.
    fn cases(t: usize) -> Vec<(&'static str, AttentionMask, usize, (usize, usize))> {
        let first = |f: &dyn Fn(usize) -> usize| {
            AttentionMask::from_window_starts((0..2 * t).map(|i| f(i % t) as u32).collect::<Vec<_>>())
        };
        vec![
            ("a later position", AttentionMask::default(), t - 1, (0, t - 1)),
            ("a position in the middle", AttentionMask::default(), t / 2, (0, t / 2)),
            ("left padding", first(&|_| 3), 2, (0, t)),
            ("before the window", first(&|i| (i + 1).saturating_sub(4)), 1, (5, t)),
            ("another document", first(&|i| if i >= t / 2 { t / 2 } else { 0 }), 0, (t / 2, t)),
        ]
    }

    #[test]
    fn masked_keys_and_values_never_affect_a_row() -> Result<()> {
        for (t, soft_cap) in [(9, None), (100, None), (9, Some(2.))] {
            let (q, k, v) =
                (random(&[2, t, 4, D], 1, 1.)?, random(&[2, t, 2, D], 2, 1.)?, random(&[2, t, 2, D], 3, 1.)?);
            for (what, mask, at, (from, to)) in cases(t) {
                for (dtype, precision, tolerance) in [
                    (DType::F32, Precision::F32, 1e-5),
                    (DType::F32, Precision::Bf16, 0.03),
                    (DType::F64, Precision::F32, 1e-6),
                ] {
                    let params = AttentionParams { soft_cap, precision, ..AttentionParams::for_head_dim(D) };
                    let plain = run([&q, &k, &v], params, &mask, dtype)?;
                    for value in NON_FINITE {
                        let cases = [(broken(&k, at, value), v.clone()), (k.clone(), broken(&v, at, value))];
                        for (i, (k, v)) in cases.iter().enumerate() {
                            let what =
                                format!("{what}, {dtype:?} {precision:?}, {value} in {}", ["a key", "a value"][i]);
                            let [y, dq, ..] = run([&q, k, v], params, &mask, dtype)?;
                            assert_close(&rows(&y, from, to), &rows(&plain[0], from, to), tolerance, &what);
                            assert_close(&rows(&dq, from, to), &rows(&plain[1], from, to), tolerance, &what);
                            // The result of a row that attends to it is not finite. (A score of -inf is a weight of
                            // 0.)
                            if from == 0 && to <= at && (i == 1 || value.is_nan()) {
                                assert!(flat(&y.i((0, at))?).iter().any(|x| !x.is_finite()), "{what} does not show");
                                assert!(flat(&dq.i((0, at))?).iter().any(|x| !x.is_finite()), "{what} does not show");
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Decoding: one query, several spans of keys, with left padding.
    #[test]
    fn masked_keys_and_values_never_affect_a_single_query() -> Result<()> {
        let s = 600;
        let (q, k, v) = (random(&[2, 1, 4, D], 1, 1.)?, random(&[2, s, 2, D], 2, 1.)?, random(&[2, s, 2, D], 3, 1.)?);
        let mask = AttentionMask::from_window_starts([300, 0]);
        for dtype in [DType::F32, DType::F64] {
            let plain = run([&q, &k, &v], AttentionParams::for_head_dim(D), &mask, dtype)?;
            for (value, at) in NON_FINITE.into_iter().flat_map(|value| [(value, 2), (value, 299)]) {
                let actual = run(
                    [&q, &broken(&k, at, value), &broken(&v, at, value)],
                    AttentionParams::for_head_dim(D),
                    &mask,
                    dtype,
                )?;
                for (actual, plain) in actual.iter().zip(&plain) {
                    assert_close(&flat(actual), &flat(plain), 1e-5, &format!("{dtype:?} {value} at {at}"));
                }
                let [y, ..] = run([&q, &k, &broken(&v, 300, value)], AttentionParams::for_head_dim(D), &mask, dtype)?;
                assert!(flat(&y.i(0)?).iter().any(|x| !x.is_finite()), "{value} does not show");
            }
        }
        Ok(())
    }

    /// No row attends to the keys and values of left padding: their gradients are zero, and all others are unchanged.
    #[test]
    fn masked_keys_and_values_do_not_affect_gradients() -> Result<()> {
        let t = 9;
        let (q, k, v) = (random(&[2, t, 4, D], 1, 1.)?, random(&[2, t, 2, D], 2, 1.)?, random(&[2, t, 2, D], 3, 1.)?);
        let mask = AttentionMask::from_window_starts([vec![3u32; t], vec![0; t]].concat());
        for dtype in [DType::F32, DType::F64] {
            let plain = run([&q, &k, &v], AttentionParams::for_head_dim(D), &mask, dtype)?;
            for value in NON_FINITE {
                let actual = run(
                    [&q, &broken(&k, 1, value), &broken(&v, 2, value)],
                    AttentionParams::for_head_dim(D),
                    &mask,
                    dtype,
                )?;
                for (actual, plain) in actual.iter().zip(&plain) {
                    assert_close(&flat(actual), &flat(plain), 1e-5, &format!("{dtype:?} {value}"));
                }
                // A query that attends to no key: no gradient of a key or value changes.
                let actual = run([&broken(&q, 1, value), &k, &v], AttentionParams::for_head_dim(D), &mask, dtype)?;
                for (actual, plain) in actual.iter().zip(&plain) {
                    assert_close(&flat(actual), &flat(plain), 1e-5, &format!("{dtype:?} {value} in a query"));
                }
            }
        }
        Ok(())
    }

    /// A finite value that rounds to infinity in bf16.
    #[test]
    fn values_that_overflow_in_bf16_do_not_affect_rows_that_mask_them() -> Result<()> {
        let (q, v) = (random(&[2, 9, 4, D], 1, 1.)?, random(&[2, 9, 2, D], 3, 1.)?);
        let params = AttentionParams { precision: Precision::Bf16, ..AttentionParams::for_head_dim(D) };
        let plain = run([&q, &v, &v], params, &AttentionMask::default(), DType::F32)?;
        let actual = run([&q, &v, &broken(&v, 8, f32::MAX)], params, &AttentionMask::default(), DType::F32)?;
        assert_close(&rows(&actual[0], 0, 8), &rows(&plain[0], 0, 8), 0.03, "f32::MAX");
        Ok(())
    }

    /// The fused block with a broken hidden state: of the last token, or of left padding.
    #[test]
    fn a_broken_token_affects_no_token_that_masks_it() -> Result<()> {
        let (t, hidden) = (11, 12);
        let (x, norm) = (random(&[2, t, hidden], 1, 1.)?, random(&[hidden], 2, 1.)?);
        let weight = |rows, cols, seed| random(&[rows, cols], seed, 0.5);
        let (wq, wk, wv, wo) =
            (weight(32, hidden, 3)?, weight(16, hidden, 4)?, weight(16, hidden, 5)?, weight(hidden, 32, 6)?);
        let padded = AttentionMask::from_window_starts([vec![3u32; t], vec![0; t]].concat());
        for (precision, (mask, at, (from, to))) in [Precision::F32, Precision::Bf16].into_iter().flat_map(|precision| {
            [(AttentionMask::default(), t - 1, (0, t - 1)), (padded.clone(), 1, (2, t))].map(|case| (precision, case))
        }) {
            let params = AttentionParams { precision, ..AttentionParams::for_head_dim(D) };
            let run = |x: &Tensor| -> Result<[Tensor; 2]> {
                let x = Var::from_tensor(x)?;
                let weights = [&wq, &wk, &wv, &wo].map(|w| Projection::dense(w, precision));
                let norm = Some(Norm::Rms { weight: norm.clone(), eps: 1e-5 });
                let block = AttentionBlock { norm, ..AttentionBlock::new(weights, D, params, &mask) };
                let y = attention_block(&x, &block, None)?;
                let grads = y.sqr()?.sum_all()?.backward()?;
                Ok([y, grads.get(&x).unwrap().clone()])
            };
            let plain = run(&x)?;
            for value in NON_FINITE {
                let mut numbers = flat(&x);
                numbers[at * hidden + 5] = value;
                let actual = run(&Tensor::from_vec(numbers, x.shape(), x.device())?)?;
                let what = format!("{precision:?} {value} at {at}");
                assert_close(&rows(&actual[0], from, to), &rows(&plain[0], from, to), 0.03, &what);
                assert!(flat(&actual[0].i((0, at))?).iter().any(|x| !x.is_finite()), "{what} does not show");
                if at == 1 {
                    assert_close(&rows(&actual[1], from, to), &rows(&plain[1], from, to), 0.03, &what);
                }
            }
        }
        Ok(())
    }
}
