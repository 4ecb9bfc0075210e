//! Dropout with a mask that is a function of a seed (Srivastava et al. 2014).

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

/// Dropout of an operand. The mask depends on the seed and the shape only, so a recomputed forward pass has the same one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// The share of the elements that become 0, at least 0 and less than 1. The others are divided by `1 - probability`.
    pub probability: f64,
    /// The seed of the mask.
    pub seed: u64,
}

/// `x` with the mask of `dropout` applied, of the same shape. It is an error if the probability is out of range.
pub fn dropout(x: &Tensor, dropout: Dropout) -> Result<Tensor> {
    let Dropout { probability, seed } = dropout;
    if !(0. ..1.).contains(&probability) {
        bail!("dropout: the probability is {probability}; it must be at least 0 and less than 1");
    }
    if probability == 0. {
        return Ok(x.clone());
    }
    let keep = 1. / (1. - probability) as f32;
    let element = |i: usize| if uniform(seed, i as u64) < probability { 0. } else { keep };
    let mask: Vec<f32> = (0..x.elem_count()).into_par_iter().map(element).collect();
    x * Tensor::from_vec(mask, x.shape(), x.device())?.to_dtype(x.dtype())?
}

/// A number in `[0, 1)`: `SplitMix64` (Steele et al. 2014) at position `i`.
fn uniform(seed: u64, i: u64) -> f64 {
    let mut z = seed.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

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

    #[test]
    fn a_probability_out_of_range_is_an_error() {
        let x = Tensor::ones(3, DType::F32, &Device::Cpu).unwrap();
        for probability in [1., -0.1, f64::NAN] {
            assert!(dropout(&x, Dropout { probability, seed: 1 }).is_err(), "{probability}");
        }
    }
}
