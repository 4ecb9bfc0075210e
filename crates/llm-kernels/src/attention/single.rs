//! Attention of a single query, as in decoding: each key and value is read once for all query heads that share it.

use super::{Scores, weigh};
use crate::matmul::Matrix;

/// The results `(heads, d)` of the query heads `q` `(d,)` that share the keys and values `(n, d)`, and the logarithm of
/// each softmax's denominator `(heads,)`.
pub fn single(q: &[&[f32]], k: Matrix, v: Matrix, scores: &Scores) -> (Vec<f32>, Vec<f32>) {
    let (heads, n, d) = (q.len(), k.rows(), q.first().map_or(0, |q| q.len()));
    let mut out = vec![0f32; heads * d];
    let mut log_sums = vec![0f32; heads];
    if n == 0 {
        return (out, log_sums);
    }
    let mut weights = vec![0f32; heads * n];
    products(q, k, scores.scale as f32, &mut weights);
    for ((row, out), log_sum) in weights.chunks_exact_mut(n).zip(out.chunks_exact_mut(d.max(1))).zip(&mut log_sums) {
        let mut softmax = (f32::NEG_INFINITY, 0f32); // largest score, sum
        weigh(row, 0..n, scores.soft_cap(), &mut softmax);
        mixture(row, v, 1. / softmax.1, out);
        *log_sum = softmax.0 + softmax.1.ln();
    }
    (out, log_sums)
}

/// `q · k · scale` of each query head with each row of `k`: `(heads, n)`.
#[pulp::with_simd(products = crate::unit::arch())]
#[inline(always)]
fn products_simd<'a, S: pulp::Simd>(simd: S, q: &'a [&'a [f32]], k: Matrix<'a>, scale: f32, out: &'a mut [f32]) {
    let n = k.rows();
    for j in 0..n {
        let (key, key_rest) = S::as_simd_f32s(k.row(j));
        for (q, out) in q.iter().zip(out.chunks_exact_mut(n)) {
            let (q, q_rest) = S::as_simd_f32s(q);
            let mut sums = [simd.splat_f32s(0.); 2];
            let ((q_pairs, q_odd), (key_pairs, key_odd)) = (q.as_chunks::<2>(), key.as_chunks::<2>());
            for (q, key) in q_pairs.iter().zip(key_pairs) {
                sums[0] = simd.mul_add_f32s(q[0], key[0], sums[0]);
                sums[1] = simd.mul_add_f32s(q[1], key[1], sums[1]);
            }
            for (&q, &key) in q_odd.iter().zip(key_odd) {
                sums[0] = simd.mul_add_f32s(q, key, sums[0]);
            }
            let mut sum = simd.reduce_sum_f32s(simd.add_f32s(sums[0], sums[1]));
            for (q, key) in q_rest.iter().zip(key_rest) {
                sum += q * key;
            }
            out[j] = sum * scale;
        }
    }
}

/// `out = scale · Σ weights[j] · v[j]` over the rows of `v`.
#[pulp::with_simd(mixture = crate::unit::arch())]
#[inline(always)]
fn mixture_simd<'a, S: pulp::Simd>(simd: S, weights: &'a [f32], v: Matrix<'a>, scale: f32, out: &'a mut [f32]) {
    const WIDE: usize = 4;
    let (wide, rest) = S::as_mut_simd_f32s(out);
    let done = wide.len() * S::F32_LANES;
    for (c, part) in wide.chunks_mut(WIDE).enumerate() {
        let mut sums = [simd.splat_f32s(0.); WIDE];
        for (j, &weight) in weights.iter().enumerate() {
            let (weight, row) = (simd.splat_f32s(weight), S::as_simd_f32s(v.row(j)).0);
            match row[c * WIDE..].first_chunk::<WIDE>() {
                Some(row) => {
                    for i in 0..WIDE {
                        sums[i] = simd.mul_add_f32s(weight, row[i], sums[i]);
                    }
                }
                None => {
                    for (sum, &x) in sums.iter_mut().zip(&row[c * WIDE..]) {
                        *sum = simd.mul_add_f32s(weight, x, *sum);
                    }
                }
            }
        }
        for (out, sum) in part.iter_mut().zip(sums) {
            *out = simd.mul_f32s(sum, simd.splat_f32s(scale));
        }
    }
    for (c, out) in rest.iter_mut().enumerate() {
        let mut sum = 0f32;
        for (j, &weight) in weights.iter().enumerate() {
            sum += weight * v.row(j)[done + c];
        }
        *out = sum * scale;
    }
}
