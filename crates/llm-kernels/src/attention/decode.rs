//! Attention of a single query, as in decoding: each key and value is read once for all query heads that share it.

use pulp::Simd;

use super::AttentionParams;
use super::flash::weigh;
use crate::matmul::Matrix;

/// Keys that one task reads.
pub const SPAN: usize = 256;

/// The results `(heads, d)` of some query heads, and the logarithm of each softmax's denominator `(heads,)`, which is `-inf`
/// where nothing was seen.
pub type Mixed = (Vec<f32>, Vec<f32>);

/// The results of the query heads `q` `(d,)` that share the keys and values `(n, d)`.
pub fn single(q: &[&[f32]], k: Matrix, v: Matrix, scores: &AttentionParams) -> Mixed {
    let (heads, n, d) = (q.len(), k.rows(), q.first().map_or(0, |q| q.len()));
    let mut out = vec![0f32; heads * d];
    let mut log_sums = vec![f32::NEG_INFINITY; heads];
    if n == 0 {
        return (out, log_sums);
    }
    let mut weights = vec![0f32; heads * n];
    products(q, k, scores.scale as f32, &mut weights);
    let mut factors = Vec::with_capacity(heads);
    for (row, log_sum) in weights.chunks_exact_mut(n).zip(&mut log_sums) {
        let mut softmax = (f32::NEG_INFINITY, 0f32); // largest score, sum
        weigh(row, 0..n, scores.soft_cap(), &mut softmax);
        factors.push(1. / softmax.1);
        *log_sum = softmax.0 + softmax.1.ln();
    }
    mixtures(&weights, v, &factors, &mut out);
    (out, log_sums)
}

/// The results over all spans of keys, from those over each: a mean, weighted by the denominators.
pub fn merged(spans: &[Mixed]) -> Mixed {
    let [(first, log_sums), rest @ ..] = spans else { return Mixed::default() };
    let (mut out, mut log_sums) = (first.clone(), log_sums.clone());
    let d = out.len().checked_div(log_sums.len()).unwrap_or_default().max(1);
    for (part, part_log_sums) in rest {
        let rows = out.chunks_exact_mut(d).zip(part.chunks_exact(d));
        for (((out, part), log_sum), &part_log_sum) in rows.zip(&mut log_sums).zip(part_log_sums) {
            if part_log_sum == f32::NEG_INFINITY {
                continue;
            }
            let top = log_sum.max(part_log_sum);
            let (ours, theirs) = ((*log_sum - top).exp(), (part_log_sum - top).exp());
            for (out, part) in out.iter_mut().zip(part) {
                *out = (*out * ours + part * theirs) / (ours + theirs);
            }
            *log_sum = top + (ours + theirs).ln();
        }
    }
    (out, log_sums)
}

/// `q · k · scale` of each query head with each row of `k`: `(heads, n)`.
fn products(q: &[&[f32]], k: Matrix, scale: f32, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if let pulp::Arch::V4(simd) = crate::unit::arch() {
        return simd.vectorize(Products { simd, q, k, scale, out });
    }
    portable_products(q, k, scale, out);
}

#[pulp::with_simd(portable_products = crate::unit::arch())]
#[inline(always)]
fn portable_products_simd<'a, S: pulp::Simd>(
    simd: S,
    q: &'a [&'a [f32]],
    k: Matrix<'a>,
    scale: f32,
    out: &'a mut [f32],
) {
    let n = k.rows();
    for j in 0..n {
        for (q, out) in q.iter().zip(out.chunks_exact_mut(n)) {
            let (lanes, rest) = dot(simd, q, k.row(j));
            out[j] = (simd.reduce_sum_f32s(lanes) + rest) * scale;
        }
    }
}

/// A product of two rows in lanes, and what does not fill them.
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

/// The products on AVX-512: the lanes of 16 of them are summed at once.
#[cfg(target_arch = "x86_64")]
struct Products<'a> {
    simd: pulp::x86::V4,
    q: &'a [&'a [f32]],
    k: Matrix<'a>,
    scale: f32,
    out: &'a mut [f32],
}

#[cfg(target_arch = "x86_64")]
impl pulp::NullaryFnOnce for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, q, k, scale, out } = self;
        let n = k.rows();
        for first in (0..n).step_by(16) {
            let count = (n - first).min(16);
            for (q, out) in q.iter().zip(out.chunks_exact_mut(n)) {
                let (mut lanes, mut rests) = ([simd.splat_f32s(0.); 16], [0f32; 16]);
                for i in 0..count {
                    let (sum, rest) = dot(simd, q, k.row(first + i));
                    (lanes[i], rests[i]) = (pulp::cast(sum), rest);
                }
                let sums = simd.add_f32s(lane_sums(simd, &lanes), pulp::cast(rests));
                let sums: [f32; 16] = pulp::cast(simd.mul_f32s(sums, simd.splat_f32s(scale)));
                out[first..first + count].copy_from_slice(&sums[..count]);
            }
        }
    }
}

/// The sum of the lanes of each of 16 vectors: neighbours are added within four lanes, then four lanes with four others.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn lane_sums(simd: pulp::x86::V4, vectors: &[pulp::f32x16; 16]) -> pulp::f32x16 {
    use std::arch::x86_64::{__m512, __m512d};
    let avx = simd.avx512f;
    let mut twos: [__m512; 8] = [pulp::cast(vectors[0]); 8];
    for i in 0..8 {
        let (a, b) = (pulp::cast(vectors[2 * i]), pulp::cast(vectors[2 * i + 1]));
        twos[i] = avx._mm512_add_ps(avx._mm512_unpacklo_ps(a, b), avx._mm512_unpackhi_ps(a, b));
    }
    let mut fours: [__m512; 4] = [twos[0]; 4];
    for i in 0..4 {
        let (a, b): (__m512d, __m512d) = (pulp::cast(twos[2 * i]), pulp::cast(twos[2 * i + 1]));
        let (low, high) = (avx._mm512_unpacklo_pd(a, b), avx._mm512_unpackhi_pd(a, b));
        fours[i] = avx._mm512_add_ps(pulp::cast(low), pulp::cast(high));
    }
    let halves = |a: __m512, b: __m512| {
        avx._mm512_add_ps(avx._mm512_shuffle_f32x4::<0x88>(a, b), avx._mm512_shuffle_f32x4::<0xdd>(a, b))
    };
    pulp::cast(halves(halves(fours[0], fours[1]), halves(fours[2], fours[3])))
}

/// `factor · Σ weights[j] · v[j]` over the rows of `v` `(n, d)` for each row of `weights` `(heads, n)`: `out` `(heads, d)`.
#[pulp::with_simd(mixtures = crate::unit::arch())]
#[inline(always)]
fn mixtures_simd<'a, S: pulp::Simd>(
    simd: S,
    mut weights: &'a [f32],
    v: Matrix<'a>,
    mut factors: &'a [f32],
    mut out: &'a mut [f32],
) {
    // Each row of `v` is read once for as many heads as there are registers for.
    while !factors.is_empty() {
        let heads = factors.len().min(4);
        let (now, later) = out.split_at_mut(heads * v.cols());
        match heads {
            1 => mixture::<S, 1>(simd, weights, v, factors, now),
            2 => mixture::<S, 2>(simd, weights, v, factors, now),
            3 => mixture::<S, 3>(simd, weights, v, factors, now),
            _ => mixture::<S, 4>(simd, weights, v, factors, now),
        }
        (weights, factors, out) = (&weights[heads * v.rows()..], &factors[heads..], later);
    }
}

/// [`mixtures`] of `H` heads.
#[inline(always)]
fn mixture<S: pulp::Simd, const H: usize>(simd: S, weights: &[f32], v: Matrix, factors: &[f32], out: &mut [f32]) {
    const WIDE: usize = 4;
    let (n, d) = (v.rows(), v.cols());
    let lanes = S::F32_LANES;
    let vectors = d / lanes;
    for first in (0..vectors).step_by(WIDE) {
        let wide = WIDE.min(vectors - first);
        let mut sums = [[simd.splat_f32s(0.); WIDE]; H];
        for j in 0..n {
            let row = &S::as_simd_f32s(v.row(j)).0[first..first + wide];
            match row.first_chunk::<WIDE>() {
                Some(row) => {
                    for h in 0..H {
                        let weight = simd.splat_f32s(weights[h * n + j]);
                        for i in 0..WIDE {
                            sums[h][i] = simd.mul_add_f32s(weight, row[i], sums[h][i]);
                        }
                    }
                }
                None => {
                    for h in 0..H {
                        let weight = simd.splat_f32s(weights[h * n + j]);
                        for (sum, &x) in sums[h].iter_mut().zip(row) {
                            *sum = simd.mul_add_f32s(weight, x, *sum);
                        }
                    }
                }
            }
        }
        for h in 0..H {
            let factor = simd.splat_f32s(factors[h]);
            let out = &mut S::as_mut_simd_f32s(&mut out[h * d..(h + 1) * d]).0[first..first + wide];
            for (out, sum) in out.iter_mut().zip(sums[h]) {
                *out = simd.mul_f32s(sum, factor);
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    #[test]
    fn the_portable_products_are_those_of_this_machine() {
        for (heads, n, d) in [(1, 1, 1), (3, 40, 64), (2, 33, 21), (5, 16, 16)] {
            let numbers = |n, seed| random(&[n], seed, 1.).unwrap().to_vec1::<f32>().unwrap();
            let (q, k) = (numbers(heads * d, 1), numbers(n * d, 2));
            let q: Vec<&[f32]> = q.chunks(d).collect();
            let (mut ours, mut portable) = (vec![0f32; heads * n], vec![0f32; heads * n]);
            products(&q, Matrix::new(&k, n, d), 0.5, &mut ours);
            portable_products(&q, Matrix::new(&k, n, d), 0.5, &mut portable);
            for (at, (ours, portable)) in ours.into_iter().zip(portable).enumerate() {
                let exact: f64 = (0..d).map(|c| f64::from(q[at / n][c]) * f64::from(k[at % n * d + c]) * 0.5).sum();
                assert!((f64::from(ours) - exact).abs() < 1e-5, "{heads} {n} {d}: {ours} is not {exact}");
                assert!((f64::from(portable) - exact).abs() < 1e-5, "{heads} {n} {d}: {portable} is not {exact}");
            }
        }
    }
}
