//! All losses of training.
//!
//! - Language models: [`next_token`] (pre-training, fine-tuning) and [`distillation`]. The output layer is part of the operation, so
//!   that the logits of all tokens are never in memory at once.
//! - Reward models: [`k_way`], the mean of [`bradley_terry`] over all pairs of a ranking; [`plackett_luce`] and [`best_of_n`] are
//!   other losses of a ranking.
//! - PPO: [`policy_loss`] and [`value_loss`]; GRPO, Dr. GRPO and DAPO: [`grpo_loss`]; RLOO: [`rloo_loss`].
//! - Preferences between answers: [`dpo()`], [`robust_dpo`], [`hinge`], [`ipo`], [`odds_ratio`] (ORPO), [`simpo`], [`kto()`].
//! - Any model: [`cross_entropy`], [`divergence()`], [`kl_divergence`] and [`mse`], on tensors.

mod distillation;
mod grpo;
mod ppo;
mod preference;
mod ranking;
mod rloo;

use candle_core::{DType, Device, Tensor};
use llm_kernels::IGNORE_INDEX;
use llm_model::Model;

use crate::Result;

pub use distillation::{distillation, divergence, kl_divergence};
pub use grpo::{ClipRange, GrpoLoss, LossType, grpo_loss, token_weights};
pub use llm_kernels::{CrossEntropyLoss, DistillationLoss, DistillationOptions, Divergence, TopKLogprobs};
pub use llm_model::Teacher;
pub use ppo::{ClippedLoss, policy_loss, value_loss};
pub use preference::{dpo, hinge, ipo, kto, odds_ratio, robust_dpo, simpo};
pub use ranking::{
    Comparisons, best_of_n, bradley_terry, k_way, k_way_with_ties, list_wise, neg_log_sigmoid, plackett_luce,
    plackett_luce_with_ties, tie,
};
pub use rloo::rloo_loss;

/// The mean cross-entropy of next-token prediction in nats, a scalar: [`cross_entropy`] of the logits that `model` computes from
/// `hidden` `(n, hidden)`, its hidden states, and the next tokens `labels` `(n,)`. Labels of -100 are ignored.
pub fn next_token(model: &Model, hidden: &Tensor, labels: &[i64]) -> Result<Tensor> {
    Ok(model.cross_entropy(hidden, labels)?)
}

/// [`next_token`] plus `z_loss_coef` times the mean of `logsumexp(logits)²` (z-loss; Chowdhery et al. 2022, arXiv 2204.02311), with both
/// terms.
pub fn next_token_z(model: &Model, hidden: &Tensor, labels: &[i64], z_loss_coef: f64) -> Result<CrossEntropyLoss> {
    Ok(model.cross_entropy_z(hidden, labels, z_loss_coef)?)
}

/// The mean cross-entropy of `logits` `(n, vocab)` and `labels` in nats, a scalar. Labels of -100 are ignored.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
///
/// let logits = Tensor::zeros((2, 8), DType::F32, &Device::Cpu)?;
/// let loss = llm_train::loss::cross_entropy(&logits, &[3, -100])?;
/// assert!((loss.to_scalar::<f32>()? - 8f32.ln()).abs() < 1e-6);
/// # Ok::<(), llm_train::Error>(())
/// ```
pub fn cross_entropy(logits: &Tensor, labels: &[i64]) -> Result<Tensor> {
    let counted = labels.iter().filter(|&&label| label != IGNORE_INDEX).count().max(1);
    Ok((llm_kernels::cross_entropy(logits, labels)?.sum_all()? / counted as f64)?)
}

/// The mean squared error, a scalar.
pub fn mse(prediction: &Tensor, target: &Tensor) -> Result<Tensor> {
    Ok((prediction - target)?.sqr()?.mean_all()?)
}

/// The value of a scalar tensor as f64.
pub(crate) fn scalar(x: &Tensor) -> Result<f64> {
    Ok(x.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_scalar::<f64>()?) // Metal has no f64
}

#[cfg(test)]
pub(crate) mod tests {
    use candle_core::Var;
    use llm_kernels::{TeacherLogits, distillation_of_logits};
    use llm_model::{Batch, Head, ModelConfig};

    use super::*;

    fn tensor(data: &[f64]) -> Tensor {
        Tensor::new(data, &Device::Cpu).unwrap()
    }

    fn pair(chosen: &[f64], rejected: &[f64], margin: f64) -> Tensor {
        bradley_terry(&tensor(chosen), &tensor(rejected), &tensor(&vec![margin; chosen.len()])).unwrap()
    }

    fn rows(data: &[[f64; 3]]) -> Tensor {
        Tensor::new(data.concat(), &Device::Cpu).unwrap().reshape(((), 3)).unwrap()
    }

    fn assert_near(x: &Tensor, expected: f64) {
        let x = scalar(x).unwrap();
        assert!((x - expected).abs() < 1e-5, "{x} is not {expected}");
    }

    #[test]
    fn ranking_losses_have_golden_values() {
        let all = |k: usize| vec![(0..k).flat_map(|i| (i + 1..k).map(move |j| (i, j))).collect::<Vec<_>>()];
        assert_near(&pair(&[3.], &[3.], 0.).squeeze(0).unwrap(), 2f64.ln());
        let scores = tensor(&[2., 1., 0., -1.]);
        assert_near(&k_way(&scores, &all(4), &[0.], 0.).unwrap(), 0.207038);
        assert_near(&plackett_luce(&scores).unwrap(), 1.161057);
        // log(1 + exp(-1.5) + exp(-2)) + log(1 + exp(-0.5)): gaps that differ tell the remaining answers from the first ones.
        assert_near(&plackett_luce(&tensor(&[2., 0.5, 0.])).unwrap(), 0.780433);
        let zeros = tensor(&[0.; 4]);
        assert_near(&k_way(&zeros, &all(4), &[0.], 0.).unwrap(), std::f64::consts::LN_2);
        assert_near(&plackett_luce(&zeros).unwrap(), 3.178054);
        assert_near(&best_of_n(&zeros, 2).unwrap(), 4f64.ln());
        assert_near(&best_of_n(&scores, 2).unwrap(), 2.440190); // log(e² + e + 1 + 1/e) - 0
        assert_eq!(all(4)[0].len(), 6);
        let (two, pair) = (tensor(&[1.5, -0.5]), pair(&[1.5], &[-0.5], 0.).squeeze(0).unwrap());
        assert_near(&k_way(&two, &all(2), &[0.], 0.).unwrap(), scalar(&pair).unwrap());
    }

    #[test]
    fn only_centering_depends_on_a_constant_added_to_all_scores() {
        let pairs = vec![vec![(0, 1), (0, 2), (1, 2)], vec![(4, 3)]];
        let scores = tensor(&[0.3, -0.2, 0.9, 0.1, 0.5]);
        let shifted = (&scores + 10.).unwrap();
        let plain = |s: &Tensor| scalar(&k_way(s, &pairs, &[0.; 2], 0.).unwrap()).unwrap();
        assert!((plain(&scores) - plain(&shifted)).abs() < 1e-12);
        let centered = |s: &Tensor| scalar(&k_way(s, &pairs, &[0.; 2], 0.01).unwrap()).unwrap();
        assert!(centered(&shifted) > centered(&scores) + 1.);
        assert!(k_way(&scores, &[vec![]], &[0.], 0.).is_err());
    }

    #[test]
    fn a_margin_applies_to_the_pairs_of_its_prompt() {
        // log(1 + exp(-(2 - 0.5))) and log(1 + exp(-(1 - 0))).
        let (with, without) = (0.2014133, 0.3132617);
        let (scores, pairs) = (tensor(&[1.5, -0.5, 1., 0.]), vec![vec![(0, 1)], vec![(2, 3)]]);
        assert_near(&k_way(&scores, &pairs, &[0.5, 0.], 0.).unwrap(), f64::midpoint(with, without));
        assert_near(&pair(&[1.5], &[-0.5], 0.5).squeeze(0).unwrap(), with);
        assert!(k_way(&scores, &pairs, &[0.5], 0.).is_err());
    }

    /// Prompts with three pairs and one pair: differences 1, 2, 1 and 1.5 minus the margin 1; sums 1, 0, -1 and 2.5.
    #[test]
    fn k_way_averages_over_the_pairs_of_a_prompt_and_then_over_prompts() {
        let loss = |difference: f64| (-difference).exp().ln_1p();
        let first = (2. * loss(1.) + loss(2.)) / 3. + 0.1 * 2. / 3.;
        let second = loss(0.5) + 0.1 * 6.25;
        let (scores, pairs) = (tensor(&[1., 0., -1., 0.5, 2.]), vec![vec![(0, 1), (0, 2), (1, 2)], vec![(4, 3)]]);
        assert_near(&k_way(&scores, &pairs, &[0., 1.], 0.1).unwrap(), f64::midpoint(first, second));
    }

    #[test]
    fn losses_of_pairs_and_of_rows_are_means() {
        // log(1 + exp(-2)) and log(1 + exp(-1)).
        assert_near(&pair(&[1.5, 1.], &[-0.5, 0.], 0.).mean_all().unwrap(), f64::midpoint(0.1269280, 0.3132617));
        let (teacher, student) = (rows(&[[2., 1., 0.], [0., 1., 2.]]), rows(&[[0., 1., 0.], [0., 1., 2.]]));
        assert_near(&kl_divergence(&student, &teacher, 1.).unwrap(), 0.474321 / 2.);
    }

    #[test]
    fn neg_log_sigmoid_is_linear_for_large_negative_inputs() {
        assert_near(&neg_log_sigmoid(&tensor(&[800.])).unwrap().squeeze(0).unwrap(), 0.);
        assert_near(&neg_log_sigmoid(&tensor(&[-800.])).unwrap().squeeze(0).unwrap(), 800.);
    }

    #[test]
    fn kl_divergence_has_golden_values() {
        let (teacher, student) = (rows(&[[2., 1., 0.]]), rows(&[[0., 1., 0.]]));
        for (temperature, expected) in [(1., 0.474321), (2., 0.482350), (4., 0.469541)] {
            assert_near(&kl_divergence(&student, &teacher, temperature).unwrap(), expected);
        }
        assert_near(&kl_divergence(&teacher, &student, 1.).unwrap(), 0.432278);
        assert_near(&kl_divergence(&teacher, &teacher, 3.).unwrap(), 0.);
        assert_near(&kl_divergence(&(&student + 5.).unwrap(), &(&teacher - 7.).unwrap(), 1.).unwrap(), 0.474321);
    }

    #[test]
    fn mse_and_cross_entropy_match_closed_forms() {
        assert_near(&mse(&tensor(&[1., 2., 5.]), &tensor(&[1., 0., 2.])).unwrap(), 13. / 3.);
        let logits = rows(&[[0., 1., 2.], [5., 5., 5.], [9., 0., 0.]]);
        let first = (1. + 1f64.exp() + 2f64.exp()).ln() - 1.;
        assert_near(&cross_entropy(&logits, &[1, 0, IGNORE_INDEX]).unwrap(), f64::midpoint(first, 3f64.ln()));
        assert_near(&cross_entropy(&logits, &[IGNORE_INDEX; 3]).unwrap(), 0.);
    }

    /// The losses of the recipes are those on logits.
    #[test]
    fn losses_with_the_output_layer_are_the_losses_of_its_logits() {
        let model = |seed| {
            let config = ModelConfig {
                vocab_size: 11,
                hidden_size: 16,
                intermediate_size: 24,
                num_hidden_layers: 1,
                num_attention_heads: 2,
                num_key_value_heads: 1,
                initializer_range: 0.5,
                ..ModelConfig::default()
            };
            Model::init(config, Head::LanguageModel, seed).unwrap()
        };
        let (student, teacher) = (model(1), model(2));
        let batch = Batch::new(&[vec![1, 2, 3], vec![4, 5, 6]]).unwrap();
        let hidden = |model: &Model| model.hidden(&batch, None).unwrap().flatten(0, 1).unwrap();
        let (student_states, teacher_states) = (hidden(&student), hidden(&teacher));
        let (logits, teacher_logits) =
            (student.output(&student_states).unwrap(), teacher.output(&teacher_states).unwrap());
        let labels = [2, 3, 4, 5, 6, 7];
        let expected = scalar(&cross_entropy(&logits, &labels).unwrap()).unwrap();
        assert_near(&next_token(&student, &student_states, &labels).unwrap(), expected);
        let (alpha, temperature) = (0.3, 2.);
        let kl = scalar(&kl_divergence(&logits, &teacher_logits, temperature).unwrap()).unwrap();
        let options = DistillationOptions { alpha, temperature, divergence: Divergence::Forward, vocab: 11 };
        let teacher = Teacher::Model(&teacher, &teacher_states);
        let found = distillation((&student, &student_states), teacher, &labels, &options).unwrap();
        assert_near(&found.loss, alpha * kl + (1. - alpha) * expected);
    }

    type Loss<'a> = Box<dyn Fn(&Tensor) -> Result<Tensor> + 'a>;

    /// Compares the gradient of every loss with central finite differences in f64.
    #[test]
    fn gradients_match_finite_differences() {
        let target = tensor(&[0.2, -0.4, 0.1, 0.9]);
        let (teacher, margins) = (target.reshape((2, 2)).unwrap(), tensor(&[0.3, 0.3]));
        let row = target.reshape((1, 4)).unwrap();
        let top = TopKLogprobs::of_logits(&row.narrow(1, 0, 3).unwrap(), 1, 2.).unwrap();
        // The divergence of the first three tokens, and the cross-entropy of four.
        let mixed = |x: &Tensor, teacher: TeacherLogits, divergence| -> Result<Tensor> {
            let options = DistillationOptions { alpha: 0.6, temperature: 2., divergence, vocab: 3 };
            Ok(distillation_of_logits(&x.reshape((1, 4))?, teacher, &[1], &options)?.loss)
        };
        let losses: Vec<(&str, Loss)> = vec![
            ("mse", Box::new(|x| mse(x, &target))),
            ("neg_log_sigmoid", Box::new(|x| Ok((neg_log_sigmoid(x)? * &target)?.sum_all()?))),
            ("k_way", Box::new(|x| k_way(x, &[vec![(0, 1), (2, 0)], vec![(3, 1)]], &[0.5, 0.], 0.1))),
            ("plackett_luce", Box::new(plackett_luce)),
            ("best_of_n", Box::new(|x| best_of_n(x, 2))),
            (
                "bradley_terry",
                Box::new(|x| Ok(bradley_terry(&x.narrow(0, 0, 2)?, &x.narrow(0, 2, 2)?, &margins)?.mean_all()?)),
            ),
            ("cross_entropy", Box::new(|x| cross_entropy(&x.reshape((2, 2))?, &[1, 0]))),
            ("kl_divergence", Box::new(|x| kl_divergence(&x.reshape((2, 2))?, &teacher, 2.))),
            ("forward", Box::new(|x| divergence(&x.reshape((2, 2))?, &teacher, Divergence::Forward, 2.))),
            ("reverse", Box::new(|x| divergence(&x.reshape((2, 2))?, &teacher, Divergence::Reverse, 2.))),
            ("jsd", Box::new(|x| divergence(&x.reshape((1, 4))?, &row, Divergence::Jsd(0.3), 0.7))),
            ("top-k", Box::new(|x| mixed(x, TeacherLogits::TopK(&top), Divergence::Forward))),
            ("top-k, reverse", Box::new(|x| mixed(x, TeacherLogits::TopK(&top), Divergence::Reverse))),
            ("cut vocabulary", Box::new(|x| mixed(x, TeacherLogits::Logits(&row), Divergence::Jsd(0.8)))),
        ];
        for (name, loss) in losses {
            for seed in 0..10 {
                let at: Vec<f64> = (0..4).map(|i| f64::from(seed * 7 + i * 3) * 0.61 % 2. - 1.03).collect();
                assert_gradient(name, &at, &loss);
            }
        }
    }

    /// Compares the gradient of `loss` at a point with central finite differences in f64.
    pub(crate) fn assert_gradient(name: &str, at: &[f64], loss: impl Fn(&Tensor) -> Result<Tensor>) {
        let var = Var::new(at, &Device::Cpu).unwrap();
        let grads = loss(&var).unwrap().backward().unwrap();
        let grad = grads.get(&var).unwrap().to_vec1::<f64>().unwrap();
        for i in 0..at.len() {
            let moved = |by: f64| {
                let mut x = at.to_vec();
                x[i] += by;
                scalar(&loss(&tensor(&x)).unwrap()).unwrap()
            };
            let expected = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((grad[i] - expected).abs() < 1e-6, "{name}: {} is not {expected}", grad[i]);
        }
    }
}
