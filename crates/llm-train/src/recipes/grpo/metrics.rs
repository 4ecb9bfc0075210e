//! The metrics of the replies of an update, with the names of TRL.

use super::episode::Episode;
use crate::rl::{are_equal, sample_std};

/// The rewards that are compared, of groups of `group` replies: mean, sample standard deviation over all replies, share of groups with
/// equal rewards.
pub(super) fn rewards(episodes: &[Episode], group: usize) -> Vec<(&'static str, f64)> {
    let all: Vec<f64> = episodes.iter().map(|episode| episode.reward).collect();
    let groups: Vec<&[f64]> = all.chunks(group).collect();
    let equal = groups.iter().filter(|rewards| are_equal(rewards)).count() as f64;
    vec![
        ("reward", mean(episodes.iter().map(|episode| episode.reward))),
        ("reward_std", sample_std(&all)),
        ("frac_reward_zero_std", equal / groups.len().max(1) as f64),
    ]
}

/// The lengths of the replies in tokens, the share without an end token, and the entropy in nats, estimated by the mean of `-ln π` of the
/// sampled tokens.
pub(super) fn completions(episodes: &[Episode]) -> Vec<(&'static str, f64)> {
    let lengths = |ended: bool| -> Vec<f64> {
        let counted = episodes.iter().filter(|episode| episode.has_eos || !ended);
        counted.map(|episode| episode.response.len() as f64).collect()
    };
    let (all, ended) = (lengths(false), lengths(true));
    let low = |x: &[f64]| x.iter().copied().reduce(f64::min).unwrap_or(0.);
    let high = |x: &[f64]| x.iter().copied().reduce(f64::max).unwrap_or(0.);
    let surprise = episodes.iter().flat_map(|episode| &episode.engine_logprobs).map(|logprob| -f64::from(*logprob));
    vec![
        ("completions/mean_length", mean(all.iter().copied())),
        ("completions/min_length", low(&all)),
        ("completions/max_length", high(&all)),
        ("completions/clipped_ratio", 1. - ended.len() as f64 / all.len().max(1) as f64),
        ("completions/mean_terminated_length", mean(ended.iter().copied())),
        ("completions/min_terminated_length", low(&ended)),
        ("completions/max_terminated_length", high(&ended)),
        ("entropy", mean(surprise)),
    ]
}

/// The k1 estimate of the KL divergence from the reference, summed over the tokens of a reply, in nats; nothing without its
/// log-probabilities.
pub(super) fn penalty(episodes: &[Episode]) -> Vec<(&'static str, f64)> {
    let pairs: Option<Vec<_>> =
        episodes.iter().map(|episode| Some((episode.old_logprobs.as_ref()?, episode.ref_logprobs.as_ref()?))).collect();
    let Some(pairs) = pairs.filter(|pairs| !pairs.is_empty()) else { return Vec::new() };
    let kl = |(p, r): (&Vec<f64>, &Vec<f64>)| p.iter().zip(r).map(|(p, r)| p - r).sum::<f64>();
    vec![("objective/kl", mean(pairs.into_iter().map(kl)))]
}

fn mean(numbers: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = numbers.fold((0., 0.), |(sum, count), x| (sum + x, count + 1.));
    sum / f64::max(count, 1.)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn episode(reward: f64, logprobs: &[f64], has_eos: bool) -> Episode {
        Episode {
            query: vec![3],
            response: vec![4; logprobs.len()],
            has_eos,
            score: reward,
            reward,
            advantage: 0.,
            engine_logprobs: logprobs.iter().map(|&x| x as f32).collect(),
            old_logprobs: Some(logprobs.to_vec()),
            ref_logprobs: Some(vec![-1.; logprobs.len()]),
        }
    }

    /// Two groups: rewards 1 and 3, and twice 2.
    #[test]
    fn metrics_match_hand_computed_values() {
        let episodes = [
            episode(1., &[-0.5, -1.5], true),
            episode(3., &[-0.25], false),
            episode(2., &[-1., -1., -0.75], true),
            episode(2., &[-2.], true),
        ];
        let found: Vec<(&str, f64)> = [rewards(&episodes, 2), completions(&episodes), penalty(&episodes)].concat();
        for (name, expected) in [
            ("reward", 2.),
            ("reward_std", (2f64 / 3.).sqrt()),
            ("frac_reward_zero_std", 0.5),
            ("completions/mean_length", 7. / 4.),
            ("completions/min_length", 1.),
            ("completions/max_length", 3.),
            ("completions/clipped_ratio", 0.25),
            ("completions/mean_terminated_length", 2.),
            ("completions/min_terminated_length", 1.),
            ("completions/max_terminated_length", 3.),
            ("entropy", 1.),
            ("objective/kl", (0. + 0.75 + 0.25 - 1.) / 4.),
        ] {
            let (_, value) = found.iter().find(|(known, _)| *known == name).unwrap();
            assert!((value - expected).abs() < 1e-6, "{name}: {value} is not {expected}");
        }
        assert_eq!(found.len(), 12);
        let without = Episode { ref_logprobs: None, ..episode(1., &[-1.], true) };
        assert!(penalty(&[without]).is_empty());
    }
}
