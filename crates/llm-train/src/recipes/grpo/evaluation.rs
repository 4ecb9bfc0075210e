//! Greedy replies to validation prompts and their mean reward.

use llm_engine::{GenerateOptions, Sampling, generate_batch};
use llm_eval::stats::{Interval, cluster_bootstrap, wilson_of};
use llm_model::Model;
use llm_tokenizer::Tokenizer;
use serde_json::json;

use super::GrpoRecipe;
use crate::Result;
use crate::examples::take_evenly;
use crate::recipes::ppo::SpecialIds;
use crate::rewards::{Prompt, Reward};
use crate::rollout::has_eos;
use crate::run::Evaluating;

/// The validation prompts and what is needed to score replies to them.
pub(super) struct Validation<'a> {
    prompts: Vec<Prompt>,
    recipe: &'a GrpoRecipe,
    reward: &'a Reward<'a>,
    tokenizer: &'a Tokenizer,
    ids: SpecialIds,
}

impl<'a> Validation<'a> {
    /// `eval_prompts` of these prompts, spread evenly over them; 0: all.
    pub fn new(
        prompts: Vec<Prompt>,
        recipe: &'a GrpoRecipe,
        reward: &'a Reward<'a>,
        tokenizer: &'a Tokenizer,
        ids: SpecialIds,
    ) -> Self {
        let prompts = take_evenly(prompts, recipe.eval_prompts);
        Self { prompts, recipe, reward, tokenizer, ids }
    }

    /// The number of prompts.
    pub fn len(&self) -> usize {
        self.prompts.len()
    }

    /// Answers all prompts greedily; logs the mean reward with its 95 % interval and writes the replies.
    pub fn evaluate(&self, model: &Model, evaluating: &Evaluating) -> Result<()> {
        let sampling = Sampling { temperature: 0., ..Sampling::default() };
        let stop_ids = Some(vec![self.ids.eos]);
        let options = GenerateOptions { max_new_tokens: self.recipe.max_new_tokens, stop_ids, sampling };
        let queries: Vec<Vec<u32>> = self.prompts.iter().map(|prompt| prompt.query.clone()).collect();
        let replies = generate_batch(model, &queries, 1, &options)?.concat();
        let scored = self.prompts.iter().zip(replies.iter().map(|reply| reply.ids.as_slice()));
        let scores = self.reward.score_replies(scored, self.ids.eos)?;
        let of_sources = self.reward.take_metrics();

        let n = scores.len().max(1) as f64;
        let reward = scores.iter().sum::<f64>() / n;
        let Interval { low, high } = interval(&scores, self.recipe.seed)?;
        let tokens = replies.iter().map(|reply| reply.ids.len()).sum::<usize>() as f64;
        let cut = replies.iter().filter(|reply| !has_eos(reply)).count() as f64;
        let names: Vec<(String, f64)> = of_sources.into_iter().map(|(name, x)| (format!("eval_{name}"), x)).collect();
        let mut metrics = vec![
            ("eval_reward", reward),
            ("eval_reward_low", low),
            ("eval_reward_high", high),
            ("eval_completions/mean_length", tokens / n),
            ("eval_completions/clipped_ratio", cut / n),
        ];
        metrics.extend(names.iter().map(|(name, x)| (name.as_str(), *x)));
        let mut text = String::new();
        for ((prompt, reply), score) in self.prompts.iter().zip(&replies).zip(&scores) {
            let line = json!({
                "prompt": self.tokenizer.decode(&prompt.query)?,
                "completion": self.tokenizer.decode(&reply.ids)?,
                "finished": has_eos(reply),
                "reward": score,
            });
            text += &format!("{line}\n");
        }
        evaluating.sample_as("validation", &text)?;
        let summary = format!(
            "mean reward of the greedy replies to {} validation prompts {reward:.4} (95 % interval {low:.4} to {high:.4})",
            self.prompts.len()
        );
        evaluating.log(&metrics, &summary)
    }
}

/// The 95 % interval of the mean: Wilson's for shares, else by bootstrap.
fn interval(scores: &[f64], seed: u64) -> Result<Interval> {
    if scores.iter().all(|&score| score == 0. || score == 1.) {
        return Ok(wilson_of(scores));
    }
    match scores {
        [score] => Ok(Interval { low: *score, high: *score }),
        _ => Ok(cluster_bootstrap(scores, &(0..scores.len()).collect::<Vec<_>>(), seed)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_a_share_is_that_of_wilson_and_others_contain_the_mean() {
        let share = interval(&[1., 0., 0., 1.], 1).unwrap();
        assert!((share.low - 0.150).abs() < 1e-3 && (share.high - 0.850).abs() < 1e-3, "{share:?}");
        let mean = interval(&[-1., 0.5, 2., 0.7, 0.3], 1).unwrap();
        assert!(mean.low < 0.5 && 0.5 < mean.high && mean.low > -1. && mean.high < 2., "{mean:?}");
        assert_eq!(interval(&[0.3], 1).unwrap(), Interval { low: 0.3, high: 0.3 });
    }
}
