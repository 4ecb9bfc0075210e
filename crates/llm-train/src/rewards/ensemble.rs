//! Reward models as a source: one, or several with their mean or minimum (Coste et al. 2023, arXiv 2310.02743).

use serde::{Deserialize, Serialize};

use super::{Answer, RewardModel};
use crate::Result;

/// How the scores of several reward models become one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Combine {
    /// Their mean.
    #[default]
    Mean,
    /// The lowest, so that a reply must please all of them: the worst case of the ensemble.
    Min,
}

/// Reward models with the tokenizer of the policy. Each score is scaled by [`RewardModel::scale`] before they are combined.
#[derive(Debug)]
pub struct Ensemble {
    /// The models, at least one.
    pub models: Vec<RewardModel>,
    /// How their scores become one.
    pub combine: Combine,
}

impl Ensemble {
    /// The score of each answer.
    pub(super) fn scores(&self, answers: &[Answer]) -> Result<Vec<f64>> {
        let rows: Vec<Vec<u32>> = answers.iter().map(Answer::ids).collect();
        let all = self.models.iter().map(|model| model.scores(&rows)).collect::<Result<Vec<_>>>()?;
        Ok((0..rows.len()).map(|row| self.combine.of(all.iter().map(|scores| scores[row]))).collect())
    }
}

impl Combine {
    /// The combined score; NaN if one of them is NaN.
    fn of(self, scores: impl ExactSizeIterator<Item = f64>) -> f64 {
        let count = scores.len() as f64;
        match self {
            Self::Mean => scores.sum::<f64>() / count,
            Self::Min => scores
                .fold(f64::INFINITY, |lowest, score| if score.is_nan() || score < lowest { score } else { lowest }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_averaged_or_the_lowest_counts() {
        assert_eq!(Combine::Mean.of([1., 4., -2.].into_iter()), 1.);
        assert_eq!(Combine::Min.of([1., 4., -2.].into_iter()), -2.);
        assert_eq!(Combine::Min.of([3.].into_iter()), 3.);
        for combine in [Combine::Mean, Combine::Min] {
            for scores in [[1., f64::NAN], [f64::NAN, 1.]] {
                assert!(combine.of(scores.into_iter()).is_nan(), "{combine:?}: a broken model is not hidden");
            }
        }
    }
}
