//! Random numbers by counter: each is a function of (seed, answer, use, position), so that nothing that happens beside an answer,
//! such as preemption or rejected drafts, shifts its draws.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What a random number is for. Each use has a stream of its own.
#[derive(Debug, Clone, Copy)]
pub enum Draw {
    /// The choice of a token.
    Token,
    /// Whether XTC applies.
    Xtc,
    /// Whether a drafted token is accepted.
    Accept,
    /// The choice of the token in the place of a rejected draft.
    Residual,
}

/// The random numbers of one answer.
#[derive(Debug, Clone)]
pub struct Random {
    rng: ChaCha8Rng,
    choice: u64,
}

impl Random {
    /// Those of answer `choice` to a request with this seed.
    pub fn new(seed: u64, choice: usize) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), choice: choice as u64 }
    }

    /// The number in [0, 1) at `position`.
    pub fn uniform(&self, draw: Draw, position: usize) -> f64 {
        let mut rng = self.rng.clone();
        rng.set_stream(self.choice | (draw as u64) << 32);
        rng.set_word_pos(2 * position as u128); // a number has two words of 32 bits
        rng.random()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_depends_on_seed_answer_use_and_position_only() {
        let random = Random::new(7, 2);
        let forwards: Vec<f64> = (0..50).map(|at| random.uniform(Draw::Token, at)).collect();
        let backwards: Vec<f64> = (0..50).rev().map(|at| Random::new(7, 2).uniform(Draw::Token, at)).collect();
        assert!(forwards.iter().eq(backwards.iter().rev()));
        let others = [
            Random::new(8, 2).uniform(Draw::Token, 3),
            Random::new(7, 1).uniform(Draw::Token, 3),
            random.uniform(Draw::Xtc, 3),
            random.uniform(Draw::Accept, 3),
            random.uniform(Draw::Residual, 3),
        ];
        let mut all: Vec<u64> = forwards.iter().chain(&others).map(|x| x.to_bits()).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 55, "no two are equal");
    }

    /// The numbers of successive positions are those of one stream of the generator.
    #[test]
    fn the_numbers_of_an_answer_are_a_stream_of_chacha() {
        let mut stream = ChaCha8Rng::seed_from_u64(42);
        stream.set_stream(3);
        let random = Random::new(42, 3);
        assert!((0..1000).all(|at| random.uniform(Draw::Token, at) == stream.random::<f64>()));
    }

    #[test]
    fn the_numbers_are_uniform_over_positions_and_over_answers() {
        let count = 20_000;
        let positions: Vec<f64> = (0..count).map(|at| Random::new(1, 0).uniform(Draw::Token, at)).collect();
        let answers: Vec<f64> = (0..count).map(|choice| Random::new(1, choice).uniform(Draw::Token, 0)).collect();
        for numbers in [positions, answers] {
            let mut bins = [0f64; 20];
            numbers.iter().for_each(|x| bins[(x * 20.) as usize] += 1.);
            let expected = count as f64 / 20.;
            let chi_square: f64 = bins.iter().map(|n| (n - expected).powi(2) / expected).sum();
            assert!(chi_square < 43.8, "{chi_square}"); // the 0.999 quantile of 19 degrees of freedom
        }
    }
}
