//! The samplers against transformers, derivations in f64 and the softmax.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod golden;
mod softmax;
mod speed;

/// Pseudo-random logits of about a normal distribution with deviation `scale` (sum of 12 uniform numbers).
fn logits(seed: u64, vocab: usize, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2) + 1;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..vocab).map(|_| ((0..12).map(|_| uniform()).sum::<f32>() - 6.) * scale).collect()
}
