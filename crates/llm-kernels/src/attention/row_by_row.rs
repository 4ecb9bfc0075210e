//! Attention beside numbers that are infinite or NaN: what a query does not see must not reach it.
//!
//! The products of blocks multiply hidden keys and values with a weight of 0, and 0 times infinity is NaN. Here each query meets
//! the keys that it sees and no others. It is slow, and serves only where such a number is there.

use super::flash::{Core, Heads, HeadsMut, turned_back};
use super::{Dims, decode};
use crate::matmul::{Element, Matrix, Rounded};
use crate::rotary::RotaryTable;
use crate::simd::{exp, tanh};

/// Whether products of blocks serve: every number is finite, in bf16 too.
pub fn is_plain<T: Element>(rows: Matrix<T>) -> bool {
    T::stay_finite(rows)
}

/// The numbers of a matrix in f32, row by row.
fn wide<T: Element>(rows: Matrix<T>) -> Vec<f32> {
    (0..rows.rows()).flat_map(|i| rows.row(i).iter().map(|x| x.widen())).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f32], x: &[f32], factor: f32) {
    to.iter_mut().zip(x).for_each(|(to, x)| *to += x * factor);
}

impl Core {
    /// [`Core::forward`] of one query head: writes its results, and gives the logarithms of its softmaxes' denominators `(t,)`.
    pub(super) fn forward_head_exactly<T: Element>(
        &self,
        [q, k, v]: [Heads<T>; 3],
        b: usize,
        head: usize,
        to: &HeadsMut<f32>,
    ) -> Vec<f32> {
        let Dims { t, s, h, g, d, .. } = self.shape;
        let group = head / (h / g);
        let (q, k, v) = (wide(q.block(b, 0..t, head)), wide(k.block(b, 0..s, group)), wide(v.block(b, 0..s, group)));
        let mut log_sums = vec![0f32; t];
        for (i, (q, log_sum)) in q.chunks_exact(d).zip(&mut log_sums).enumerate() {
            let (start, end) = self.visible.range(b, i, t, s);
            let [k, v] = [&k, &v].map(|x| Matrix::new(&x[start * d..end * d], end - start, d));
            let (row, sums) = decode::single(&[q], k, v, &self.scores);
            if start < end {
                *log_sum = sums[0];
            }
            // SAFETY: the caller's task alone writes this head of this sequence.
            #[allow(unsafe_code)]
            unsafe {
                to.write(b, i, head, &row);
            }
        }
        log_sums
    }

    /// [`Core::backward`] of one key/value head.
    pub(super) fn backward_group_exactly<T: Rounded, G: Rounded>(
        &self,
        ([q, k, v], out, grad): ([Heads<T>; 3], Heads, Heads<T>),
        log_sums: &[f32],
        (b, group): (usize, usize),
        [to_q, to_k, to_v]: [&HeadsMut<G>; 3],
        rotation: Option<&RotaryTable>,
    ) {
        let Dims { t, s, h, g, d, .. } = self.shape;
        let (scale, cap) = (self.scores.scale as f32, self.scores.soft_cap());
        let (k, v) = (wide(k.block(b, 0..s, group)), wide(v.block(b, 0..s, group)));
        let (mut dk, mut dv) = (vec![0f32; s * d], vec![0f32; s * d]);
        for head in group * (h / g)..(group + 1) * (h / g) {
            let (q, grad) = (wide(q.block(b, 0..t, head)), wide(grad.block(b, 0..t, head)));
            let mut dq = vec![0f32; t * d];
            for (i, dq) in dq.chunks_exact_mut(d).enumerate() {
                let (q, grad) = (&q[i * d..(i + 1) * d], &grad[i * d..(i + 1) * d]);
                let (mean, log_sum) = (dot(out.row(b, i, head), grad), log_sums[(b * h + head) * t + i]);
                let (start, end) = self.visible.range(b, i, t, s);
                for j in start..end {
                    let of_key = j * d..(j + 1) * d;
                    let (mut score, mut slope) = (dot(q, &k[of_key.clone()]) * scale, scale);
                    if cap > 0. {
                        let y = tanh(score / cap);
                        (score, slope) = (cap * y, scale * (1. - y * y));
                    }
                    let p = exp(score - log_sum);
                    let ds = p * (dot(grad, &v[of_key.clone()]) - mean) * slope;
                    add(dq, &k[of_key.clone()], ds);
                    add(&mut dk[of_key.clone()], q, ds);
                    add(&mut dv[of_key], grad, p);
                }
            }
            // SAFETY: the caller's task alone writes the heads of this group of this sequence.
            #[allow(unsafe_code)]
            unsafe {
                to_q.write(b, 0, head, turned_back(rotation, b * t, d, &mut dq));
            }
        }
        // SAFETY: as above.
        #[allow(unsafe_code)]
        unsafe {
            to_k.write(b, 0, group, turned_back(rotation, b * s, d, &mut dk));
            to_v.write(b, 0, group, &dv);
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, IndexOp, Result, Tensor, Var};

    use crate::testing::random;
    use crate::{AttentionMask, AttentionParams, AttentionWeights, Precision, attention, attention_block};

    const BROKEN: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    const D: usize = 8;

    /// `x` `(b, s, g, d)` with one number of token `at` of the first sequence replaced, in each head.
    fn broken(x: &Tensor, at: usize, by: f32) -> Tensor {
        let (b, s, g, d) = x.dims4().unwrap();
        let mut flat = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for head in 0..g {
            flat[(at * g + head) * d + 3] = by;
        }
        Tensor::from_vec(flat, (b, s, g, d), x.device()).unwrap()
    }

    /// The result `(b, t, h, d)` and the gradients of queries, keys and values.
    fn run(
        inputs: [&Tensor; 3],
        scores: AttentionParams,
        visible: &AttentionMask,
        dtype: DType,
    ) -> Result<[Tensor; 4]> {
        let vars = inputs.map(|x| Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap());
        let y = attention(&vars[0], &vars[1], &vars[2], scores, visible)?;
        let grads = (&y * random(y.dims(), 9, 1.)?.to_dtype(dtype)?)?.sum_all()?.backward()?;
        let [dq, dk, dv] = [0, 1, 2].map(|i| grads.get(&vars[i]).unwrap().to_dtype(DType::F32).unwrap());
        Ok([y.to_dtype(DType::F32)?, dq, dk, dv])
    }

    fn flat(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Tokens `from..to` of the first sequence, and the whole second one.
    fn rows(x: &Tensor, from: usize, to: usize) -> Vec<f32> {
        [flat(&x.i((0, from..to)).unwrap()), flat(&x.i(1).unwrap())].concat()
    }

    fn near(ours: &[f32], theirs: &[f32], tolerance: f32, what: &str) {
        let scale = theirs.iter().fold(0f32, |a, b| a.max(b.abs())).max(0.1);
        for (ours, theirs) in ours.iter().zip(theirs) {
            assert!((ours - theirs).abs() <= tolerance * scale, "{what}: {ours} is not {theirs}");
        }
    }

    /// A mask, the token whose key or value is broken, and the rows of the first sequence that do not see it.
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
    fn what_the_mask_hides_never_reaches_a_row() -> Result<()> {
        for (t, soft_cap) in [(9, None), (100, None), (9, Some(2.))] {
            let (q, k, v) =
                (random(&[2, t, 4, D], 1, 1.)?, random(&[2, t, 2, D], 2, 1.)?, random(&[2, t, 2, D], 3, 1.)?);
            for (what, visible, at, (from, to)) in cases(t) {
                for (dtype, precision, tolerance) in [
                    (DType::F32, Precision::F32, 1e-5),
                    (DType::F32, Precision::Bf16, 0.03),
                    (DType::F64, Precision::F32, 1e-6),
                ] {
                    let scores = AttentionParams { soft_cap, precision, ..AttentionParams::for_head_dim(D) };
                    let plain = run([&q, &k, &v], scores, &visible, dtype)?;
                    for by in BROKEN {
                        let cases = [(broken(&k, at, by), v.clone()), (k.clone(), broken(&v, at, by))];
                        for (i, (k, v)) in cases.iter().enumerate() {
                            let what = format!("{what}, {dtype:?} {precision:?}, {by} in {}", ["a key", "a value"][i]);
                            let [y, dq, ..] = run([&q, k, v], scores, &visible, dtype)?;
                            near(&rows(&y, from, to), &rows(&plain[0], from, to), tolerance, &what);
                            near(&rows(&dq, from, to), &rows(&plain[1], from, to), tolerance, &what);
                            // A row that sees it shows it. (A score of -inf is a weight of 0.)
                            if from == 0 && to <= at && (i == 1 || by.is_nan()) {
                                assert!(flat(&y.i((0, at))?).iter().any(|x| !x.is_finite()), "{what} is hidden");
                                assert!(flat(&dq.i((0, at))?).iter().any(|x| !x.is_finite()), "{what} is hidden");
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Decoding: one query, over several spans of keys, beside left padding.
    #[test]
    fn what_the_mask_hides_never_reaches_a_single_query() -> Result<()> {
        let s = 600;
        let (q, k, v) = (random(&[2, 1, 4, D], 1, 1.)?, random(&[2, s, 2, D], 2, 1.)?, random(&[2, s, 2, D], 3, 1.)?);
        let visible = AttentionMask::from_window_starts([300, 0]);
        for dtype in [DType::F32, DType::F64] {
            let plain = run([&q, &k, &v], AttentionParams::for_head_dim(D), &visible, dtype)?;
            for (by, at) in BROKEN.into_iter().flat_map(|by| [(by, 2), (by, 299)]) {
                let found = run(
                    [&q, &broken(&k, at, by), &broken(&v, at, by)],
                    AttentionParams::for_head_dim(D),
                    &visible,
                    dtype,
                )?;
                for (found, plain) in found.iter().zip(&plain) {
                    near(&flat(found), &flat(plain), 1e-5, &format!("{dtype:?} {by} at {at}"));
                }
                let [y, ..] = run([&q, &k, &broken(&v, 300, by)], AttentionParams::for_head_dim(D), &visible, dtype)?;
                assert!(flat(&y.i(0)?).iter().any(|x| !x.is_finite()), "{by} is hidden");
            }
        }
        Ok(())
    }

    /// The keys and values of left padding: no row sees them, so that their gradients are zero and all others as they were.
    #[test]
    fn gradients_of_keys_and_values_do_not_see_it_either() -> Result<()> {
        let t = 9;
        let (q, k, v) = (random(&[2, t, 4, D], 1, 1.)?, random(&[2, t, 2, D], 2, 1.)?, random(&[2, t, 2, D], 3, 1.)?);
        let visible = AttentionMask::from_window_starts([vec![3u32; t], vec![0; t]].concat());
        for dtype in [DType::F32, DType::F64] {
            let plain = run([&q, &k, &v], AttentionParams::for_head_dim(D), &visible, dtype)?;
            for by in BROKEN {
                let found = run(
                    [&q, &broken(&k, 1, by), &broken(&v, 2, by)],
                    AttentionParams::for_head_dim(D),
                    &visible,
                    dtype,
                )?;
                for (found, plain) in found.iter().zip(&plain) {
                    near(&flat(found), &flat(plain), 1e-5, &format!("{dtype:?} {by}"));
                }
                // A query that sees nothing: no key or value hears of it.
                let found = run([&broken(&q, 1, by), &k, &v], AttentionParams::for_head_dim(D), &visible, dtype)?;
                for (found, plain) in found.iter().zip(&plain) {
                    near(&flat(found), &flat(plain), 1e-5, &format!("{dtype:?} {by} in a query"));
                }
            }
        }
        Ok(())
    }

    /// A finite number that rounds to infinity in bf16.
    #[test]
    fn what_overflows_in_bf16_never_reaches_a_row_that_does_not_see_it() -> Result<()> {
        let (q, v) = (random(&[2, 9, 4, D], 1, 1.)?, random(&[2, 9, 2, D], 3, 1.)?);
        let scores = AttentionParams { precision: Precision::Bf16, ..AttentionParams::for_head_dim(D) };
        let plain = run([&q, &v, &v], scores, &AttentionMask::default(), DType::F32)?;
        let found = run([&q, &v, &broken(&v, 8, f32::MAX)], scores, &AttentionMask::default(), DType::F32)?;
        near(&rows(&found[0], 0, 8), &rows(&plain[0], 0, 8), 0.03, "f32::MAX");
        Ok(())
    }

    /// The fused operation, where a hidden state is broken: of the last token, or of left padding.
    #[test]
    fn a_broken_token_reaches_no_token_that_does_not_see_it() -> Result<()> {
        let (t, hidden) = (11, 12);
        let (x, norm) = (random(&[2, t, hidden], 1, 1.)?, random(&[hidden], 2, 1.)?);
        let weight = |rows, cols, seed| random(&[rows, cols], seed, 0.5);
        let (wq, wk, wv, wo) =
            (weight(32, hidden, 3)?, weight(16, hidden, 4)?, weight(16, hidden, 5)?, weight(hidden, 32, 6)?);
        let padded = AttentionMask::from_window_starts([vec![3u32; t], vec![0; t]].concat());
        for (precision, (visible, at, (from, to))) in
            [Precision::F32, Precision::Bf16].into_iter().flat_map(|precision| {
                [(AttentionMask::default(), t - 1, (0, t - 1)), (padded.clone(), 1, (2, t))]
                    .map(|case| (precision, case))
            })
        {
            let scores = AttentionParams { precision, ..AttentionParams::for_head_dim(D) };
            let run = |x: &Tensor| -> Result<[Tensor; 2]> {
                let x = Var::from_tensor(x)?;
                let weights = AttentionWeights { q: &wq, k: &wk, v: &wv, o: &wo };
                let y = attention_block(&x, (&norm, 1e-5), weights, D, None, scores, &visible)?;
                let grads = y.sqr()?.sum_all()?.backward()?;
                Ok([y, grads.get(&x).unwrap().clone()])
            };
            let plain = run(&x)?;
            for by in BROKEN {
                let mut numbers = flat(&x);
                numbers[at * hidden + 5] = by;
                let found = run(&Tensor::from_vec(numbers, x.shape(), x.device())?)?;
                let what = format!("{precision:?} {by} at {at}");
                near(&rows(&found[0], from, to), &rows(&plain[0], from, to), 0.03, &what);
                assert!(flat(&found[0].i((0, at))?).iter().any(|x| !x.is_finite()), "{what} is hidden");
                if at == 1 {
                    near(&rows(&found[1], from, to), &rows(&plain[1], from, to), 0.03, &what);
                }
            }
        }
        Ok(())
    }
}
