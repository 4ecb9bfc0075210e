//! The metrics of a PPO update, with the names of TRL.

use super::PpoRecipe;
use crate::rollout::Rollout;

/// Weighted running means by name.
#[derive(Debug, Default)]
pub struct RunningMeans(Vec<(&'static str, f64, f64)>); // name, weighted sum, sum of weights

impl RunningMeans {
    /// Adds a value with a weight.
    pub(crate) fn add(&mut self, name: &'static str, value: f64, weight: f64) {
        match self.0.iter_mut().find(|(known, ..)| *known == name) {
            Some((_, sum, weights)) => {
                *sum += weight * value;
                *weights += weight;
            }
            None => self.0.push((name, weight * value, weight)),
        }
    }

    /// The mean with this name, if any value was added.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(known, ..)| *known == name).map(|(_, sum, weights)| sum / weights)
    }

    /// Adds all values of other means.
    pub(super) fn merge(&mut self, other: Self) {
        for (name, sum, weights) in other.0 {
            self.add(name, sum / weights, weights);
        }
    }

    /// Removes and returns the mean with this name.
    pub(super) fn take(&mut self, name: &str) -> Option<f64> {
        let mean = self.get(name);
        self.0.retain(|(known, ..)| *known != name);
        mean
    }

    /// All means, in the order of their first value.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static str, f64)> + '_ {
        self.0.iter().map(|(name, sum, weights)| (*name, sum / weights))
    }
}

/// The objective of a batch of replies: means over replies of sums over tokens.
///
/// `objective/kl` is the k1 estimate, which the reward contains, `objective/kl_k3` the one of lower variance.
/// `objective/scores` is the optimised score, after the penalty for a missing end token; `rollout/raw_scores` is the score before.
pub(super) fn objective(rollouts: &[Rollout], recipe: &PpoRecipe, kl_coef: f64) -> Vec<(&'static str, f64)> {
    let n = rollouts.len().max(1) as f64;
    let mean = |number: &dyn Fn(&Rollout) -> f64| rollouts.iter().map(number).sum::<f64>() / n;
    let (kl, scores) = (mean(&Rollout::kl), mean(&|r| recipe.missing_eos.apply(r.score, r.has_eos)));
    let ended = rollouts.iter().filter(|r| r.has_eos).count() as f64;
    vec![
        ("objective/kl", kl),
        ("objective/kl_k3", mean(&Rollout::kl_k3)),
        ("objective/entropy", mean(&|r| -r.logprobs.iter().sum::<f64>())),
        ("objective/non_score_reward", -kl_coef * kl),
        ("objective/rlhf_reward", scores - kl_coef * kl),
        ("objective/scores", scores),
        ("objective/kl_coef", kl_coef),
        ("rollout/raw_scores", mean(&|r| r.score)),
        ("rollout/length", mean(&|r| r.response.len() as f64)),
        ("rollout/no_eos_frac", 1. - ended / n),
        ("val/num_eos_tokens", ended),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rl::MissingEos;

    #[test]
    fn a_running_mean_is_weighted() {
        let mut means = RunningMeans::default();
        for (name, number, weight) in [("a", 1., 1.), ("b", 5., 2.), ("a", 4., 3.)] {
            means.add(name, number, weight);
        }
        assert_eq!(means.all().collect::<Vec<_>>(), [("a", 13. / 4.), ("b", 5.)]);
        assert_eq!(means.get("a"), Some(13. / 4.));
        assert_eq!(means.get("c"), None);
    }

    /// Three replies: KL 0.3 + (-0.1) = 0.2, 0.5 and 0.1; the second has no end token.
    #[test]
    fn objective_metrics_match_hand_computed_values() {
        let rollout = |logprobs: &[f64], ref_logprobs: &[f64], score, has_eos| Rollout {
            query: vec![3],
            response: vec![4; logprobs.len()],
            has_eos,
            score,
            logprobs: logprobs.to_vec(),
            engine_logprobs: logprobs.iter().map(|&x| x as f32).collect(),
            ref_logprobs: ref_logprobs.to_vec(),
            values: vec![0.; logprobs.len()],
        };
        let rollouts = [
            rollout(&[-1., -2.], &[-1.3, -1.9], 3., true),
            rollout(&[-0.5], &[-1.], 2., false),
            rollout(&[-0.7], &[-0.8], 1., true),
        ];
        let recipe = PpoRecipe { missing_eos: MissingEos::Subtract(1.5), ..PpoRecipe::default() };
        for (name, expected) in [
            ("objective/kl", 0.8 / 3.),
            ("objective/kl_k3", ([0.3f64, -0.1, 0.5, 0.1].map(|d| (-d).exp()).iter().sum::<f64>() - 3.2) / 3.),
            ("objective/entropy", 1.4),
            ("objective/non_score_reward", -0.08 / 3.),
            ("objective/scores", 1.5),
            ("objective/rlhf_reward", 1.5 - 0.08 / 3.),
            ("objective/kl_coef", 0.1),
            ("rollout/raw_scores", 2.),
            ("rollout/length", 4. / 3.),
            ("rollout/no_eos_frac", 1. / 3.),
            ("val/num_eos_tokens", 2.),
        ] {
            let found = objective(&rollouts, &recipe, 0.1).into_iter().find(|f| f.0 == name).unwrap().1;
            assert!((found - expected).abs() < 1e-12, "{name}: {found} is not {expected}");
        }
    }
}
