//! Dropout with a mask that is a function of a seed (Srivastava et al. 2014).

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::{contiguous, cpu_slice};

/// Dropout of an operand. The mask depends on the seed and the shape only, so a recomputed forward pass has the same one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// The share of the elements that become 0, at least 0 and less than 1. The others are divided by `1 - probability`.
    pub probability: f64,
    /// The seed of the mask.
    pub seed: u64,
}

impl Dropout {
    fn check(self) -> Result<()> {
        match self.probability {
            probability if (0. ..1.).contains(&probability) => Ok(()),
            probability => bail!("dropout: the probability is {probability}; it must be at least 0 and less than 1"),
        }
    }

    /// The factor of each element, by its index: 0 or `1 / (1 - probability)`.
    fn factors(self) -> impl Fn(usize) -> f32 + Sync {
        let keep = 1. / (1. - self.probability) as f32;
        // A random number of 53 bits is compared with the probability as a number of 53 bits.
        let threshold = (self.probability * (1u64 << 53) as f64).ceil() as u64;
        move |i| if random_bits(self.seed, i as u64) < threshold { 0. } else { keep }
    }

    /// The factors as a tensor like `x`.
    fn mask(self, x: &Tensor) -> Result<Tensor> {
        let mask: Vec<f32> = (0..x.elem_count()).into_par_iter().map(self.factors()).collect();
        Tensor::from_vec(mask, x.shape(), x.device())?.to_dtype(x.dtype())
    }
}

/// `x` with the mask of `dropout` applied, of the same shape. It is an error if the probability is out of range.
pub fn dropout(x: &Tensor, dropout: Dropout) -> Result<Tensor> {
    dropout.check()?;
    if dropout.probability == 0. {
        return Ok(x.clone());
    }
    x * dropout.mask(x)?
}

/// `residual + mask · (y - residual)`: the output `y = residual + f(…)` of a sub-layer with its residual connection, after dropout of
/// `f`. So dropout needs no access to the inside of a fused sub-layer.
///
/// Both have the shape of the result. It is an error if the shapes differ or the probability is out of range.
pub fn residual_dropout(residual: &Tensor, y: &Tensor, dropout: Dropout) -> Result<Tensor> {
    dropout.check()?;
    if residual.dims() != y.dims() {
        bail!("residual_dropout: the residual is {:?}, the output {:?}", residual.dims(), y.dims());
    }
    if dropout.probability == 0. {
        return Ok(y.clone());
    }
    if crate::is_fused(residual) && crate::is_fused(y) {
        return residual.contiguous()?.apply_op2(&y.contiguous()?, ResidualDropout(dropout));
    }
    residual + ((y - residual)? * dropout.mask(y)?)?
}

/// Elements that a thread computes at a time.
const CHUNK: usize = 4096;

/// [`residual_dropout`]; the mask is computed again in the backward.
struct ResidualDropout(Dropout);

impl ResidualDropout {
    /// `f(a, b, mask)` of each element, on all threads.
    fn map(&self, a: &[f32], b: &[f32], f: impl Fn(f32, f32, f32) -> f32 + Sync) -> Vec<f32> {
        let mut out = vec![0.; a.len()];
        let factor = self.0.factors();
        let chunks = out.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK)));
        chunks.enumerate().for_each(|(chunk, (out, (a, b)))| {
            for (i, (out, (a, b))) in out.iter_mut().zip(a.iter().zip(b)).enumerate() {
                *out = f(*a, *b, factor(chunk * CHUNK + i));
            }
        });
        out
    }
}

impl CustomOp2 for ResidualDropout {
    fn name(&self) -> &'static str {
        "residual-dropout"
    }

    fn cpu_fwd(&self, rs: &CpuStorage, rl: &Layout, ys: &CpuStorage, yl: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = self.map(contiguous(rs, rl)?, contiguous(ys, yl)?, |r, y, factor| r + factor * (y - r));
        Ok((CpuStorage::F32(out), rl.shape().clone()))
    }

    // d y = mask · d, d residual = d - d y.
    fn bwd(&self, _r: &Tensor, y: &Tensor, _out: &Tensor, d: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let d = d.contiguous()?;
        let dy = {
            let (storage, layout) = d.storage_and_layout();
            let slice = cpu_slice(&storage, layout)?;
            Tensor::from_vec(self.map(slice, slice, |d, _, factor| d * factor), y.shape(), y.device())?
        };
        Ok((Some((&d - &dy)?), Some(dy)))
    }
}

/// 53 random bits: `SplitMix64` (Steele et al. 2014) at position `i`.
fn random_bits(seed: u64, i: u64) -> u64 {
    let mut z = seed.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) >> 11
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::testing::{assert_matches_reference, random};

    fn values(probability: f64, seed: u64) -> Vec<f32> {
        let x = Tensor::ones((50, 400), DType::F32, &Device::Cpu).unwrap();
        dropout(&x, Dropout { probability, seed }).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn the_share_of_zeros_is_the_probability_and_the_mean_stays() {
        for probability in [0.1, 0.5, 0.9] {
            let values = values(probability, 7);
            let n = values.len() as f64;
            let zeros = values.iter().filter(|x| **x == 0.).count() as f64;
            // Five standard deviations of a binomial count.
            let bound = 5. * (n * probability * (1. - probability)).sqrt();
            assert!((zeros - n * probability).abs() < bound, "{probability}: {zeros} of {n}");
            let kept = values.iter().find(|x| **x != 0.).unwrap();
            assert!((f64::from(*kept) * (1. - probability) - 1.).abs() < 1e-6);
        }
    }

    #[test]
    fn the_mask_depends_on_the_seed_only() {
        assert_eq!(values(0.3, 1), values(0.3, 1));
        assert_ne!(values(0.3, 1), values(0.3, 2));
        assert!(values(0., 1).iter().all(|x| *x == 1.));
    }

    /// The random numbers themselves: `random_bits / 2^53` is below the probability where an element is 0.
    #[test]
    fn the_mask_is_that_of_the_random_numbers() {
        for probability in [0.1, 0.25, 1. / 3.] {
            let expected = (0..20_000).map(|i| (random_bits(3, i) as f64 / (1u64 << 53) as f64) < probability);
            assert!(values(probability, 3).iter().zip(expected).all(|(x, is_zero)| (*x == 0.) == is_zero));
        }
    }

    #[test]
    fn residual_dropout_equals_the_f64_reference() -> Result<()> {
        for shape in [[1, 1], [3, 50], [7, 2000]] {
            let (residual, y) = (random(&shape, 1, 1.)?, random(&shape, 2, 1.)?);
            let dropout = Dropout { probability: 0.3, seed: 5 };
            assert_matches_reference(&[&residual, &y], 1e-6, |t| residual_dropout(&t[0], &t[1], dropout))?;
        }
        Ok(())
    }

    #[test]
    fn residual_dropout_drops_what_was_added_and_keeps_the_residual() -> Result<()> {
        let (residual, added) = (random(&[40, 50], 1, 1.)?, random(&[40, 50], 2, 1.)?);
        let settings = Dropout { probability: 0.4, seed: 5 };
        let found = residual_dropout(&residual, &(&residual + &added)?, settings)?;
        let expected = (&residual + dropout(&added, settings)?)?;
        let gap = (found - expected)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        assert!(gap < 1e-6, "{gap}");
        assert!(residual_dropout(&residual, &added.t()?, settings).is_err());
        Ok(())
    }

    #[test]
    fn a_probability_out_of_range_is_an_error() {
        let x = Tensor::ones(3, DType::F32, &Device::Cpu).unwrap();
        for probability in [1., -0.1, f64::NAN] {
            let settings = Dropout { probability, seed: 1 };
            assert!(dropout(&x, settings).is_err() && residual_dropout(&x, &x, settings).is_err(), "{probability}");
        }
    }
}
