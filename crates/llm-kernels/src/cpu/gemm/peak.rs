//! The measured speed of the machine.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

#[cfg(target_arch = "x86_64")]
use super::packed;
use super::{GemmOptions, Matrix, Precision, matmul_into};

/// The measured peak of all threads in FLOP/s: multiply-adds on data in the L1 cache. Benchmarks report matmul rates
/// as a share of it. `None` on machines that run the `gemm` crate.
pub fn peak_flops(precision: Precision) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    if packed::is_available() {
        let rates = rayon::broadcast(|_| match precision {
            Precision::F32 => packed::peak::<false>(),
            Precision::Bf16 => packed::peak::<true>(),
        });
        return Some(rates.iter().sum());
    }
    let _ = precision;
    None
}

/// The measured rate of a large matmul on all threads, in FLOP/s: what a training step could reach. The first call takes about 50 ms;
/// later ones return the same number.
pub fn matmul_flops(precision: Precision) -> f64 {
    static RATES: [OnceLock<f64>; 2] = [const { OnceLock::new() }; 2];
    const N: usize = 768;
    *RATES[usize::from(precision == Precision::Bf16)].get_or_init(|| {
        let factor: Vec<f32> = (0..N * N).map(|i| (i % 7) as f32 - 3.).collect();
        let (factor, mut out) = (Matrix::new(&factor, N, N), vec![0.; N * N]);
        let (start, mut best) = (Instant::now(), f64::INFINITY);
        // The first one warms up caches and threads.
        for run in 0.. {
            let begin = Instant::now();
            matmul_into(factor, factor, &mut out, N, false, 1., GemmOptions::all_threads(precision));
            best = best.min(begin.elapsed().as_secs_f64());
            if run >= 2 && start.elapsed() > Duration::from_millis(50) {
                break;
            }
        }
        2. * (N as f64).powi(3) / best
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_measured_once() {
        for precision in [Precision::F32, Precision::Bf16] {
            let rate = matmul_flops(precision);
            assert!(rate.is_finite() && rate > 1e7, "{rate}");
            assert_eq!(matmul_flops(precision), rate);
        }
    }
}
