//! The metrics of an update, named as TRL names them.

use super::PpoRecipe;
use crate::rollout::Rollout;

/// Averages by name, each over what was added to it.
#[derive(Debug, Default)]
pub struct Averages(Vec<(&'static str, f64, f64)>); // name, weighted sum, sum of weights

impl Averages {
    /// Adds a number that counts `weight` times.
    pub(super) fn add(&mut self, name: &'static str, number: f64, weight: f64) {
        match self.0.iter_mut().find(|(known, ..)| *known == name) {
            Some((_, sum, weights)) => {
                *sum += weight * number;
                *weights += weight;
            }
            None => self.0.push((name, weight * number, weight)),
        }
    }

    /// The average of that name, if something was added to it.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(known, ..)| *known == name).map(|(_, sum, weights)| sum / weights)
    }

    /// The average of that name, which is gone then.
    pub(super) fn take(&mut self, name: &str) -> Option<f64> {
        let average = self.get(name);
        self.0.retain(|(known, ..)| *known != name);
        average
    }

    /// The averages in the order in which their names came.
    pub(super) fn all(&self) -> impl Iterator<Item = (&'static str, f64)> + '_ {
        self.0.iter().map(|(name, sum, weights)| (*name, sum / weights))
    }
}

/// What the batch of replies says of the objective: means over replies of what is summed over a reply's tokens.
///
/// `objective/scores` is what is optimised: the score after the penalty for a missing end. `rollout/raw_scores` is the
/// score before it.
pub(super) fn objective(rollouts: &[Rollout], recipe: &PpoRecipe, kl_coef: f64) -> Vec<(&'static str, f64)> {
    let n = rollouts.len().max(1) as f64;
    let mean = |number: &dyn Fn(&Rollout) -> f64| rollouts.iter().map(number).sum::<f64>() / n;
    let (kl, scores) = (mean(&Rollout::kl), mean(&|r| recipe.missing_eos.apply(r.score, r.has_eos)));
    let ended = rollouts.iter().filter(|r| r.has_eos).count() as f64;
    vec![
        ("objective/kl", kl),
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
    fn an_average_is_over_what_was_added() {
        let mut averages = Averages::default();
        for (name, number, weight) in [("a", 1., 1.), ("b", 5., 2.), ("a", 4., 3.)] {
            averages.add(name, number, weight);
        }
        assert_eq!(averages.all().collect::<Vec<_>>(), [("a", 13. / 4.), ("b", 5.)]);
        assert_eq!(averages.get("a"), Some(13. / 4.));
        assert_eq!(averages.get("c"), None);
    }

    /// Two replies by hand: KL 0.3 + (-0.1) = 0.2 and 0.5; the second has no end.
    #[test]
    fn the_objective_is_what_is_optimised() {
        let rollout = |logprobs: &[f64], ref_logprobs: &[f64], score, has_eos| Rollout {
            query: vec![3],
            response: vec![4; logprobs.len()],
            has_eos,
            score,
            logprobs: logprobs.to_vec(),
            ref_logprobs: ref_logprobs.to_vec(),
            values: vec![0.; logprobs.len()],
        };
        let rollouts = [rollout(&[-1., -2.], &[-1.3, -1.9], 3., true), rollout(&[-0.5], &[-1.], 2., false)];
        let recipe = PpoRecipe { missing_eos: MissingEos::Subtract(1.5), ..PpoRecipe::default() };
        for (name, expected) in [
            ("objective/kl", 0.35),
            ("objective/entropy", 1.75),
            ("objective/non_score_reward", -0.035),
            ("objective/scores", 1.75),
            ("objective/rlhf_reward", 1.715),
            ("objective/kl_coef", 0.1),
            ("rollout/raw_scores", 2.5),
            ("rollout/length", 1.5),
            ("rollout/no_eos_frac", 0.5),
            ("val/num_eos_tokens", 1.),
        ] {
            let found = objective(&rollouts, &recipe, 0.1).into_iter().find(|f| f.0 == name).unwrap().1;
            assert!((found - expected).abs() < 1e-12, "{name}: {found} is not {expected}");
        }
    }
}
