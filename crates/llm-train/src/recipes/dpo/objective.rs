//! The losses and metrics of a batch of pairs.

use candle_core::{Device, Tensor};
use llm_eval::stats::{Interval, share_interval};
use llm_model::{Model, Routing};
use serde::{Deserialize, Serialize};

use super::DpoRecipe;
use super::pairs::{Pair, prompt_numbers, replies};
use super::reference::by_pair;
use crate::completions::{answer_logprobs, numbers};
use crate::recipes::RunningMeans;
use crate::run::Evaluating;
use crate::{Result, loss};

/// The loss of a pair of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PairLoss {
    /// DPO, with `label_smoothing` conservative DPO: [`loss::dpo()`].
    Sigmoid,
    /// DPO with log-ratios per token: [`loss::dpo()`].
    SigmoidNorm,
    /// [`loss::robust_dpo`].
    Robust,
    /// [`loss::hinge`].
    Hinge,
    /// [`loss::ipo`], with log-ratios per token.
    Ipo,
    /// The cross-entropy of the chosen answer and `beta` times [`loss::odds_ratio`]; without a reference.
    Orpo,
    /// [`loss::simpo`]; without a reference.
    Simpo,
}

impl PairLoss {
    /// Whether the loss compares the policy with a reference.
    pub fn has_reference(self) -> bool {
        !matches!(self, Self::Orpo | Self::Simpo)
    }

    /// Whether `label_smoothing` applies.
    pub fn has_label_smoothing(self) -> bool {
        matches!(self, Self::Sigmoid | Self::SigmoidNorm | Self::Robust)
    }
}

/// Log-probabilities of n pairs under the policy and the reference.
pub(super) struct Batch {
    chosen: Side,
    rejected: Side,
    entropy: f64,
    /// The routing of a model with experts.
    pub routing: Option<Routing>,
}

/// The answers of one side, each tensor `(n,)`.
struct Side {
    logprobs: Tensor,
    /// Zero if the loss has no reference.
    ref_logprobs: Tensor,
    lengths: Tensor,
}

impl Side {
    fn log_ratio(&self) -> Result<Tensor> {
        Ok((&self.logprobs - &self.ref_logprobs)?)
    }

    fn log_ratio_per_token(&self) -> Result<Tensor> {
        Ok((self.log_ratio()? / &self.lengths)?)
    }

    fn logprobs_per_token(&self) -> Result<Tensor> {
        Ok((&self.logprobs / &self.lengths)?)
    }
}

impl Batch {
    /// Runs the policy on both answers of all pairs. `ref_logprobs` `(2n,)` are those of the chosen answers, then of the rejected ones.
    pub fn new(policy: &Model, pairs: &[&Pair], ref_logprobs: Option<Tensor>) -> Result<Self> {
        let n = pairs.len();
        let found = answer_logprobs(policy, &replies(pairs))?;
        let ref_logprobs = ref_logprobs.map_or_else(|| found.sums.zeros_like(), Ok)?;
        let side = |side: usize, length: &dyn Fn(&Pair) -> usize| -> Result<Side> {
            let lengths: Vec<f32> = pairs.iter().map(|pair| length(pair) as f32).collect();
            let lengths = Tensor::from_vec(lengths, n, &Device::Cpu)?;
            Ok(Side {
                logprobs: found.sums.narrow(0, side * n, n)?,
                ref_logprobs: ref_logprobs.narrow(0, side * n, n)?,
                lengths: lengths.to_device(found.sums.device())?,
            })
        };
        let chosen = side(0, &|pair| pair.chosen.len())?;
        let rejected = side(1, &|pair| pair.rejected.len())?;
        Ok(Self { chosen, rejected, entropy: found.entropy, routing: found.routing })
    }

    /// The loss of each pair: `(n,)`.
    pub fn losses(&self, recipe: &DpoRecipe) -> Result<Tensor> {
        let (chosen, rejected, beta) = (&self.chosen, &self.rejected, recipe.beta);
        let difference = || -> Result<Tensor> { Ok((chosen.log_ratio()? - rejected.log_ratio()?)?) };
        let per_token = || -> Result<Tensor> { Ok((chosen.log_ratio_per_token()? - rejected.log_ratio_per_token()?)?) };
        let cross_entropy = || -> Result<Tensor> { Ok(chosen.logprobs_per_token()?.neg()?) };
        let losses = match recipe.loss {
            PairLoss::Sigmoid => loss::dpo(&difference()?, beta, recipe.label_smoothing)?,
            PairLoss::SigmoidNorm => loss::dpo(&per_token()?, beta, recipe.label_smoothing)?,
            PairLoss::Robust => loss::robust_dpo(&difference()?, beta, recipe.label_smoothing)?,
            PairLoss::Hinge => loss::hinge(&difference()?, beta)?,
            PairLoss::Ipo => loss::ipo(&per_token()?, beta)?,
            PairLoss::Orpo => {
                let odds = loss::odds_ratio(&chosen.logprobs_per_token()?, &rejected.logprobs_per_token()?)?;
                (cross_entropy()? + (odds * beta)?)?
            }
            PairLoss::Simpo => {
                let (chosen, rejected) = (chosen.logprobs_per_token()?, rejected.logprobs_per_token()?);
                loss::simpo(&chosen, &rejected, beta, recipe.simpo_gamma)?
            }
        };
        match recipe.nll_weight == 0. {
            true => Ok(losses),
            false => Ok((losses + (cross_entropy()? * recipe.nll_weight)?)?),
        }
    }

    /// The rewards of the chosen and the rejected answers: `β` times the log-ratio, without a reference `β` times the log-probability per
    /// token.
    fn rewards(&self, recipe: &DpoRecipe) -> Result<[Vec<f64>; 2]> {
        let of = |side: &Side| -> Result<Vec<f64>> {
            let reward = if recipe.loss.has_reference() { side.log_ratio()? } else { side.logprobs_per_token()? };
            Ok(numbers(&reward)?.into_iter().map(|reward| reward * recipe.beta).collect())
        };
        Ok([of(&self.chosen)?, of(&self.rejected)?])
    }

    /// Adds the metrics of the batch to means over pairs, with the names of TRL. `length/*` is in tokens.
    pub fn add_metrics(&self, recipe: &DpoRecipe, losses: &Tensor, means: &mut RunningMeans) -> Result<()> {
        let losses = numbers(losses)?;
        let n = losses.len() as f64;
        let mean = |values: &[f64]| values.iter().sum::<f64>() / n;
        let [chosen, rejected] = self.rewards(recipe)?;
        let accuracy = chosen.iter().zip(&rejected).filter(|(chosen, rejected)| chosen > rejected).count() as f64 / n;
        for (name, value) in [
            ("loss", mean(&losses)),
            ("rewards/chosen", mean(&chosen)),
            ("rewards/rejected", mean(&rejected)),
            ("rewards/accuracies", accuracy),
            ("rewards/margins", mean(&chosen) - mean(&rejected)),
            ("logps/chosen", mean(&numbers(&self.chosen.logprobs)?)),
            ("logps/rejected", mean(&numbers(&self.rejected.logprobs)?)),
            ("nll_loss", -mean(&numbers(&self.chosen.logprobs_per_token()?)?)),
            ("length/chosen", mean(&numbers(&self.chosen.lengths)?)),
            ("length/rejected", mean(&numbers(&self.rejected.lengths)?)),
            ("entropy", self.entropy),
        ] {
            means.add(name, value, n);
        }
        Ok(())
    }
}

/// Logs the metrics of the validation pairs: those of training, the share of pairs whose chosen answer is the more probable one, and at the
/// end a 95 % interval of the accuracy, over prompts.
pub(super) fn evaluate(
    recipe: &DpoRecipe,
    model: &Model,
    pairs: &[Pair],
    ref_logprobs: Option<&[[f64; 2]]>,
    evaluating: &Evaluating,
) -> Result<()> {
    let (mut means, mut right, mut likelier) = (RunningMeans::default(), Vec::new(), 0.);
    for (number, chunk) in pairs.chunks(recipe.batch_size).enumerate() {
        let stored = ref_logprobs.map(|all| &all[number * recipe.batch_size..][..chunk.len()]);
        let ref_logprobs = stored.map(|all| {
            let side = |side: usize| all.iter().map(move |both| both[side] as f32);
            Tensor::from_vec(side(0).chain(side(1)).collect::<Vec<f32>>(), 2 * all.len(), &model.device())
        });
        let batch = Batch::new(model, &chunk.iter().collect::<Vec<_>>(), ref_logprobs.transpose()?)?;
        batch.add_metrics(recipe, &batch.losses(recipe)?, &mut means)?;
        let [chosen, rejected] = batch.rewards(recipe)?;
        right.extend(chosen.iter().zip(&rejected).map(|(chosen, rejected)| f64::from(u8::from(chosen > rejected))));
        let (chosen, rejected) = by_pair(&Tensor::cat(&[&batch.chosen.logprobs, &batch.rejected.logprobs], 0)?)?;
        likelier += chosen.iter().zip(&rejected).filter(|(chosen, rejected)| chosen > rejected).count() as f64;
    }
    let named: Vec<(String, f64)> = means.all().map(|(name, value)| (format!("eval_{name}"), value)).collect();
    let mut metrics: Vec<(&str, f64)> = named.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    metrics.push(("eval_logps/accuracies", likelier / pairs.len() as f64));
    let accuracy = right.iter().sum::<f64>() / right.len() as f64;
    let mut summary = format!(
        "validation loss {:.4}, {:.1} % of the validation pairs ranked correctly",
        means.get("loss").unwrap_or_default(),
        100. * accuracy
    );
    if evaluating.is_last() {
        let Interval { low, high } = share_interval(&right, &prompt_numbers(pairs), recipe.seed)?;
        metrics.extend([("eval_rewards/accuracies_low", low), ("eval_rewards/accuracies_high", high)]);
        summary += &format!(" (95 % interval {:.1} to {:.1})", 100. * low, 100. * high);
    }
    evaluating.log(&metrics, &summary)
}
