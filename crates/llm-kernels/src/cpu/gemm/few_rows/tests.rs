use half::{bf16, f16};
use pulp::NullaryFnOnce;

use super::*;

fn numbers(n: usize, seed: u64) -> Vec<f32> {
    crate::testing::random(&[n], seed, 1.).unwrap().to_vec1().unwrap()
}

/// The instruction sets that this machine has.
const UNITS: [&str; 3] = ["AVX-512", "AVX2", "portable"];

/// The product `(n, m)` with one instruction set; `None` if the machine does not have it.
fn product<W: Element>(unit: &str, x: &[f32], w: &[W], k: usize) -> Option<Vec<f32>> {
    let (n, m) = (x.len() / k, w.len() / k);
    let mut values = vec![f32::NAN; n * m];
    let mut rows: Vec<&mut [f32]> = values.chunks_mut(m).collect();
    let out = &mut rows[..];
    match unit {
        #[cfg(target_arch = "x86_64")]
        "AVX-512" => {
            let simd = pulp::x86::V4::try_new()?;
            simd.vectorize(FewRows { vectors: Avx512(simd), x, w, k, out });
        }
        #[cfg(target_arch = "x86_64")]
        "AVX2" => {
            let simd = pulp::x86::V3::try_new()?;
            simd.vectorize(FewRows { vectors: Avx2(simd), x, w, k, out });
        }
        "portable" => FewRows { vectors: Portable, x, w, k, out }.call(),
        _ => return None,
    }
    Some(values)
}

/// Compares each row of a batch with f64, and with the bits that it has alone and among fewer rows.
fn check<W: Element>(name: &str, rows: impl Iterator<Item = usize>, k: usize, m: usize, convert: impl Fn(f32) -> W) {
    let w: Vec<W> = numbers(m * k, 2).into_iter().map(convert).collect();
    let x = numbers(65 * k, 1);
    let rows: Vec<usize> = rows.collect();
    for unit in UNITS {
        let Some(alone) = x.chunks(k).map(|row| product(unit, row, &w, k)).collect::<Option<Vec<_>>>() else {
            continue;
        };
        for (at, &y) in alone.concat().iter().enumerate() {
            let (x, w) = (&x[at / m * k..][..k], &w[at % m * k..][..k]);
            let exact: f64 = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w.widen())).sum();
            let bound = 1e-6 * (k as f64).sqrt();
            assert!((f64::from(y) - exact).abs() < bound, "{unit} {name} {k} {m}: {y} at {at} is not {exact}");
        }
        for &n in &rows {
            let together = product(unit, &x[..n * k], &w, k).unwrap();
            let same = together.iter().zip(alone[..n].iter().flatten()).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(
                same && together.len() == n * m,
                "{unit} {name} {k} {m}: {n} rows have other bits than each row alone"
            );
        }
    }
}

#[test]
fn the_bits_of_a_row_do_not_depend_on_the_other_rows() {
    for (k, m) in [(1, 1), (37, 50), (64, 3), (100, 129)] {
        check("f32", 1..=65, k, m, |x| x);
        check("bf16", 1..=65, k, m, bf16::from_f32);
        check("f16", 1..=65, k, m, f16::from_f32);
    }
    // Several blocks of the weight.
    check("f32", [1, 5, 64].into_iter(), 700, 150, |x| x);
    check("bf16", [1, 5, 64].into_iter(), 700, 250, bf16::from_f32);
}

/// All f16 numbers, in each instruction set.
#[test]
fn every_f16_is_converted_exactly() {
    let w: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    for unit in UNITS {
        let Some(found) = product(unit, &[1.], &w, 1) else { continue };
        for (found, w) in found.into_iter().zip(&w) {
            let w = w.to_f32();
            assert!(found == w || found.is_nan() && w.is_nan(), "{unit}: {found} is not {w}");
        }
    }
}
