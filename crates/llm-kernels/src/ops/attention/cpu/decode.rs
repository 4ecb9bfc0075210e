//! Attention of a single query, as in decoding: each key and value is read once for all query heads that share it.
//! Spans of keys run in parallel and are merged (Flash-Decoding).

use pulp::Simd;

use super::softmax::online_softmax_update;
use crate::cpu::gemm::Matrix;
#[cfg(target_arch = "x86_64")]
use crate::cpu::simd::lane_sums;
use crate::ops::attention::AttentionParams;

/// Keys per task.
pub const SPAN: usize = 256;

/// The results `(heads, d)` of some query heads over some keys, and the log-sum-exp of the scores `(heads,)`, which is
/// `-inf` if there was no key.
pub type PartialAttention = (Vec<f32>, Vec<f32>);

/// Attention of the query heads `q`, each `(d,)`, that share the keys and values `(n, d)`.
pub fn decode(q: &[&[f32]], k: Matrix, v: Matrix, params: &AttentionParams) -> PartialAttention {
    let (heads, n, d) = (q.len(), k.rows(), q.first().map_or(0, |q| q.len()));
    let mut out = vec![0f32; heads * d];
    let mut lse = vec![f32::NEG_INFINITY; heads];
    if n == 0 {
        return (out, lse);
    }
    let mut weights = vec![0f32; heads * n];
    attention_scores(q, k, params.scale as f32, &mut weights);
    let mut factors = Vec::with_capacity(heads);
    for (row, lse_i) in weights.chunks_exact_mut(n).zip(&mut lse) {
        let mut softmax = (f32::NEG_INFINITY, 0f32); // running maximum and sum
        online_softmax_update(row, 0..n, params.soft_cap(), &mut softmax);
        factors.push(1. / softmax.1);
        *lse_i = softmax.0 + softmax.1.ln();
    }
    weights_times_v(&weights, v, &factors, &mut out);
    (out, lse)
}

/// Merges the results of all spans: their mean, weighted by the softmax denominators.
pub fn merge_spans(spans: &[PartialAttention]) -> PartialAttention {
    let [(first, lse), rest @ ..] = spans else { return PartialAttention::default() };
    let (mut out, mut lse) = (first.clone(), lse.clone());
    let d = out.len().checked_div(lse.len()).unwrap_or_default().max(1);
    for (part, part_lse) in rest {
        let rows = out.chunks_exact_mut(d).zip(part.chunks_exact(d));
        for (((out, part), lse_i), &part_lse_i) in rows.zip(&mut lse).zip(part_lse) {
            if part_lse_i == f32::NEG_INFINITY {
                continue;
            }
            let row_max = lse_i.max(part_lse_i);
            let (old, new) = ((*lse_i - row_max).exp(), (part_lse_i - row_max).exp());
            for (out, part) in out.iter_mut().zip(part) {
                *out = (*out * old + part * new) / (old + new);
            }
            *lse_i = row_max + (old + new).ln();
        }
    }
    (out, lse)
}

/// `q · k · scale` of each query head with each row of `k`: `(heads, n)`.
fn attention_scores(q: &[&[f32]], k: Matrix, scale: f32, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if let pulp::Arch::V4(simd) = crate::cpu::unit::arch() {
        return simd.vectorize(ScoresAvx512 { simd, q, k, scale, out });
    }
    portable_scores(q, k, scale, out);
}

#[pulp::with_simd(portable_scores = crate::cpu::unit::arch())]
#[inline(always)]
fn portable_scores_simd<'a, S: pulp::Simd>(simd: S, q: &'a [&'a [f32]], k: Matrix<'a>, scale: f32, out: &'a mut [f32]) {
    let (n, key) = (k.rows(), k.row_reader());
    for j in 0..n {
        for (q, out) in q.iter().zip(out.chunks_exact_mut(n)) {
            let (lanes, rest) = dot(simd, q, key(j));
            out[j] = (simd.reduce_sum_f32s(lanes) + rest) * scale;
        }
    }
}

/// The dot product of two rows: a vector of partial sums, and the sum of the elements that do not fill a vector.
#[inline(always)]
fn dot<S: pulp::Simd>(simd: S, q: &[f32], key: &[f32]) -> (S::f32s, f32) {
    let ((q, q_rest), (key, key_rest)) = (S::as_simd_f32s(q), S::as_simd_f32s(key));
    let mut sums = [simd.splat_f32s(0.); 2];
    let ((q_pairs, q_odd), (key_pairs, key_odd)) = (q.as_chunks::<2>(), key.as_chunks::<2>());
    for (q, key) in q_pairs.iter().zip(key_pairs) {
        sums[0] = simd.mul_add_f32s(q[0], key[0], sums[0]);
        sums[1] = simd.mul_add_f32s(q[1], key[1], sums[1]);
    }
    for (&q, &key) in q_odd.iter().zip(key_odd) {
        sums[0] = simd.mul_add_f32s(q, key, sums[0]);
    }
    let mut rest = 0f32;
    for (q, key) in q_rest.iter().zip(key_rest) {
        rest += q * key;
    }
    (simd.add_f32s(sums[0], sums[1]), rest)
}

/// [`attention_scores`] on AVX-512: sums the lanes of 16 dot products at once.
#[cfg(target_arch = "x86_64")]
struct ScoresAvx512<'a> {
    simd: pulp::x86::V4,
    q: &'a [&'a [f32]],
    k: Matrix<'a>,
    scale: f32,
    out: &'a mut [f32],
}

#[cfg(target_arch = "x86_64")]
impl pulp::NullaryFnOnce for ScoresAvx512<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, q, k, scale, out } = self;
        let (n, key) = (k.rows(), k.row_reader());
        for first in (0..n).step_by(16) {
            let count = (n - first).min(16);
            for (q, out) in q.iter().zip(out.chunks_exact_mut(n)) {
                let (mut lanes, mut rests) = ([simd.splat_f32s(0.); 16], [0f32; 16]);
                for i in 0..count {
                    let (sum, rest) = dot(simd, q, key(first + i));
                    (lanes[i], rests[i]) = (pulp::cast(sum), rest);
                }
                let sums = simd.add_f32s(pulp::cast(lane_sums(simd, &pulp::cast(lanes))), pulp::cast(rests));
                let sums: [f32; 16] = pulp::cast(simd.mul_f32s(sums, simd.splat_f32s(scale)));
                out[first..first + count].copy_from_slice(&sums[..count]);
            }
        }
    }
}

/// `factor · Σ_j weights[j] · v[j]` over the rows of `v` `(n, d)`, for each row of `weights` `(heads, n)`: `out`
/// `(heads, d)`.
#[pulp::with_simd(weights_times_v = crate::cpu::unit::arch())]
#[inline(always)]
fn weights_times_v_simd<'a, S: pulp::Simd>(
    simd: S,
    mut weights: &'a [f32],
    v: Matrix<'a>,
    mut factors: &'a [f32],
    mut out: &'a mut [f32],
) {
    // Each row of `v` is read once for up to four heads, as many as fit in registers.
    while !factors.is_empty() {
        let heads = factors.len().min(4);
        let (now, later) = out.split_at_mut(heads * v.cols());
        match heads {
            1 => weights_times_v_heads::<S, 1>(simd, weights, v, factors, now),
            2 => weights_times_v_heads::<S, 2>(simd, weights, v, factors, now),
            3 => weights_times_v_heads::<S, 3>(simd, weights, v, factors, now),
            _ => weights_times_v_heads::<S, 4>(simd, weights, v, factors, now),
        }
        (weights, factors, out) = (&weights[heads * v.rows()..], &factors[heads..], later);
    }
}

/// [`weights_times_v`] of `H` heads.
#[inline(always)]
fn weights_times_v_heads<S: pulp::Simd, const H: usize>(
    simd: S,
    weights: &[f32],
    v: Matrix,
    factors: &[f32],
    out: &mut [f32],
) {
    const WIDE: usize = 4;
    let (n, d) = (v.rows(), v.cols());
    let lanes = S::F32_LANES;
    let vectors = d / lanes;
    for first in (0..vectors).step_by(WIDE) {
        match vectors - first {
            1 => weights_times_v_columns::<S, H, 1>(simd, weights, v, factors, first, out),
            2 => weights_times_v_columns::<S, H, 2>(simd, weights, v, factors, first, out),
            3 => weights_times_v_columns::<S, H, 3>(simd, weights, v, factors, first, out),
            _ => weights_times_v_columns::<S, H, WIDE>(simd, weights, v, factors, first, out),
        }
    }
    for (h, factor) in factors.iter().enumerate().take(H) {
        for c in vectors * lanes..d {
            let mut sum = 0f32;
            for j in 0..n {
                sum += weights[h * n + j] * v.row(j)[c];
            }
            out[h * d + c] = sum * factor;
        }
    }
}

/// [`weights_times_v`] of `H` heads and `W` vectors of columns from `first` on. `W` is a constant so that the sums stay in
/// registers.
#[inline(always)]
fn weights_times_v_columns<S: pulp::Simd, const H: usize, const W: usize>(
    simd: S,
    weights: &[f32],
    v: Matrix,
    factors: &[f32],
    first: usize,
    out: &mut [f32],
) {
    let (n, d, value) = (v.rows(), v.cols(), v.row_reader());
    let mut sums = [[simd.splat_f32s(0.); W]; H];
    for j in 0..n {
        let row = &S::as_simd_f32s(value(j)).0[first..first + W];
        for h in 0..H {
            let weight = simd.splat_f32s(weights[h * n + j]);
            for i in 0..W {
                sums[h][i] = simd.mul_add_f32s(weight, row[i], sums[h][i]);
            }
        }
    }
    for h in 0..H {
        let factor = simd.splat_f32s(factors[h]);
        let out = &mut S::as_mut_simd_f32s(&mut out[h * d..(h + 1) * d]).0[first..first + W];
        for (out, sum) in out.iter_mut().zip(sums[h]) {
            *out = simd.mul_f32s(sum, factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    #[test]
    fn portable_scores_equal_those_of_this_machine() {
        for (heads, n, d) in [(1, 1, 1), (3, 40, 64), (2, 33, 21), (5, 16, 16)] {
            let numbers = |n, seed| random(&[n], seed, 1.).unwrap().to_vec1::<f32>().unwrap();
            let (q, k) = (numbers(heads * d, 1), numbers(n * d, 2));
            let q: Vec<&[f32]> = q.chunks(d).collect();
            let (mut dispatched, mut portable) = (vec![0f32; heads * n], vec![0f32; heads * n]);
            attention_scores(&q, Matrix::new(&k, n, d), 0.5, &mut dispatched);
            portable_scores(&q, Matrix::new(&k, n, d), 0.5, &mut portable);
            for (at, (dispatched, portable)) in dispatched.into_iter().zip(portable).enumerate() {
                let exact: f64 = (0..d).map(|c| f64::from(q[at / n][c]) * f64::from(k[at % n * d + c]) * 0.5).sum();
                assert!((f64::from(dispatched) - exact).abs() < 1e-5, "{heads} {n} {d}: {dispatched} is not {exact}");
                assert!((f64::from(portable) - exact).abs() < 1e-5, "{heads} {n} {d}: {portable} is not {exact}");
            }
        }
    }
}
