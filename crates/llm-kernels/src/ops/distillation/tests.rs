use super::*;
use crate::testing::{assert_matches_reference, random};

const ALL: [Divergence; 5] =
    [Divergence::Forward, Divergence::Reverse, Divergence::Jsd(0.1), Divergence::Jsd(0.5), Divergence::Jsd(0.9)];

fn options(alpha: f64, temperature: f64, divergence: Divergence, vocab: usize) -> DistillationOptions {
    DistillationOptions { alpha, temperature, divergence, vocab }
}

fn labels(n: usize, vocab: usize) -> Vec<i64> {
    (0..n).map(|i| if i % 3 == 2 { IGNORE_INDEX } else { (i * 7 % vocab) as i64 }).collect()
}

fn head<'a>(hidden_states: &'a Tensor, weight: &'a Tensor) -> HeadInputs<'a> {
    HeadInputs { hidden_states, weight, precision: Precision::F32 }
}

#[test]
fn the_fused_distillation_equals_the_f64_reference() -> Result<()> {
    for (n, k, tk, vocab) in [(1, 1, 2, 3), (7, 5, 9, 11), (40, 2, 3, 300_001)] {
        let (x, w) = (random(&[n, k], 1, 2.)?, random(&[vocab, k], 2, 1.)?);
        let (tx, tw) = (random(&[n, tk], 3, 2.)?, random(&[vocab, tk], 4, 1.)?);
        for (alpha, temperature) in [(0.9, 2.), (1., 1.), (0., 3.)] {
            for divergence in if vocab > 1000 { &ALL[..1] } else { &ALL } {
                let options = options(alpha, temperature, *divergence, vocab);
                assert_matches_reference(&[&x, &w], 1e-4, |t| {
                    let (tx, tw) = (tx.to_dtype(t[0].dtype())?, tw.to_dtype(t[0].dtype())?);
                    let teacher = TeacherLogits::Head(head(&tx, &tw));
                    Ok(linear_distillation(head(&t[0], &t[1]), teacher, &labels(n, vocab), &options)?.loss)
                })?;
            }
        }
    }
    Ok(())
}

/// Vocabularies of 13 (student) and 12 tokens (teacher) that share 11.
#[test]
fn rows_that_pad_a_vocabulary_are_in_no_divergence() -> Result<()> {
    let (x, w) = (random(&[7, 5], 1, 2.)?, random(&[13, 5], 2, 1.)?);
    let (tx, tw) = (random(&[7, 9], 3, 2.)?, random(&[12, 9], 4, 1.)?);
    for divergence in ALL {
        let padded = options(0.7, 2., divergence, 11);
        assert_matches_reference(&[&x, &w], 1e-4, |t| {
            let (tx, tw) = (tx.to_dtype(t[0].dtype())?, tw.to_dtype(t[0].dtype())?);
            let teacher = TeacherLogits::Head(head(&tx, &tw));
            Ok(linear_distillation(head(&t[0], &t[1]), teacher, &labels(7, 11), &padded)?.loss)
        })?;
        let of = |weight: &Tensor, teacher: &Tensor| {
            let teacher = TeacherLogits::Head(head(&tx, teacher));
            linear_distillation(head(&x, weight), teacher, &labels(7, 11), &padded)
        };
        let cut = of(&w.narrow(0, 0, 11)?, &tw.narrow(0, 0, 11)?)?;
        let whole = of(&w, &tw)?;
        assert!((cut.divergence - whole.divergence).abs() < 1e-6);
        assert!(whole.cross_entropy > cut.cross_entropy, "the cross-entropy is that of the student's vocabulary");
    }
    Ok(())
}

/// Five real tokens, and two rows of padding with logits of 0: .560047 without them, .546749 with them.
#[test]
fn padding_changes_the_divergence_if_it_is_not_cut() -> Result<()> {
    let row = |x: &[f32]| Tensor::from_slice(x, (1, x.len()), &Device::Cpu);
    let (teacher, student) = (row(&[3., 2., 1., 0., -1., 0., 0.])?, row(&[1., 2., 0., 1., 0., 0., 0.])?);
    for (vocab, expected) in [(5, 0.560047), (7, 0.546749)] {
        let options = options(1., 1., Divergence::Forward, vocab);
        let found = distillation_of_logits(&student, TeacherLogits::Logits(&teacher), &[0], &options)?;
        assert!((found.divergence - expected).abs() < 1e-6, "{vocab}: {}", found.divergence);
        let eye = Tensor::eye(7, DType::F32, &Device::Cpu)?;
        let fused = linear_distillation(head(&student, &eye), TeacherLogits::Logits(&teacher), &[0], &options)?;
        assert!((fused.divergence - expected).abs() < 1e-6, "{vocab}: {}", fused.divergence);
    }
    Ok(())
}

/// Values from the definitions, in f64; those of rows of 3 and 5 logits also from report tables.
#[test]
fn divergences_have_golden_values() {
    let ln = |p: &[f32]| p.iter().map(|x| x.ln()).collect::<Vec<f32>>();
    let near = |found: f64, expected: f64| assert!((found - expected).abs() < 2e-6, "{found} is not {expected}");
    let (teacher, student) = ([2f32, 1., 0.], [0f32, 1., 0.]);
    near(Divergence::Forward.value(&student, &teacher, 1.), 0.474321);
    near(Divergence::Reverse.value(&student, &teacher, 1.), 0.432278);
    near(Divergence::Forward.value(&student, &teacher, 0.5), 0.120587);
    near(Divergence::Jsd(0.5).value(&ln(&[0.1, 0.9]), &ln(&[0.9, 0.1]), 1.), 0.368064);
    let (teacher, student) = (ln(&[0.7, 0.3]), ln(&[0.2, 0.8]));
    near(Divergence::Jsd(0.1).value(&student, &teacher, 1.), 0.050887);
    near(Divergence::Jsd(0.1).value(&teacher, &student, 1.), 0.047629);
    for (beta, same) in [(0., Divergence::Forward), (1., Divergence::Reverse)] {
        assert_eq!(Divergence::Jsd(beta).value(&student, &teacher, 1.), same.value(&student, &teacher, 1.));
    }
    assert_ne!(Divergence::Forward.value(&student, &teacher, 1.), Divergence::Reverse.value(&student, &teacher, 1.));
    let (teacher, student) = ([3f32, 2., 1., 0., -1.], [1f32, 2., 0., 1., 0.]);
    near(Divergence::Forward.value(&student, &teacher, 1.), 0.560047);
    near(Divergence::Reverse.value(&student, &teacher, 1.), 0.572207);
    near(Divergence::Jsd(0.5).value(&student, &teacher, 1.), 0.131659);
    for divergence in ALL {
        near(divergence.value(&teacher, &teacher, 1.), 0.);
        let shifted = |row: &[f32], by: f32| row.iter().map(|x| x + by).collect::<Vec<f32>>();
        near(
            divergence.value(&shifted(&student, 5.), &shifted(&teacher, -7.), 1.),
            divergence.value(&student, &teacher, 1.),
        );
    }
}

/// The k most likely tokens of [3, 2, 1, 0, -1] and their tail.
#[test]
fn the_tail_is_one_outcome() -> Result<()> {
    let row = |x: &[f32]| Tensor::from_slice(x, (1, x.len()), &Device::Cpu);
    let (teacher, student) = (row(&[3., 2., 1., 0., -1.])?, row(&[1., 2., 0., 1., 0.])?);
    let eye = Tensor::eye(5, DType::F32, &Device::Cpu)?;
    for (k, expected) in [(2, 0.498637), (5, 0.560047)] {
        let top = TopKLogprobs::of_logits(&teacher, k, 1.)?;
        assert_eq!(top.ids, (0..k as u32).collect::<Vec<_>>());
        let options = options(1., 1., Divergence::Forward, 5);
        let fused = linear_distillation(head(&student, &eye), TeacherLogits::TopK(&top), &[0], &options)?;
        let composed = distillation_of_logits(&student, TeacherLogits::TopK(&top), &[0], &options)?;
        for found in [fused.divergence, composed.divergence] {
            assert!((found - expected).abs() < 1e-6, "{k}: {found}");
        }
    }
    // A teacher's token with .5 where the student's has .9: a sum over the token alone is -.2939, and its gradient raises the .9.
    let (teacher, student) = (row(&[0.5f32.ln(), 0.5f32.ln()])?, row(&[0.9f32.ln(), 0.1f32.ln()])?);
    let top = TopKLogprobs { k: 1, ids: vec![0], logprobs: vec![0.5f32.ln()], tail: vec![0.5f32.ln()] };
    let mut gradient = [0f32; 2];
    let logits = student.flatten_all()?.to_vec1::<f32>()?;
    let value = top.row(0, &logits, 1., Divergence::Forward, 1., Some(&mut gradient));
    assert!((value - 0.5108256).abs() < 1e-6, "{value}");
    assert!((gradient[0] - 0.4).abs() < 1e-6 && (gradient[1] + 0.4).abs() < 1e-6, "{gradient:?}");
    assert_eq!(top, TopKLogprobs::of_logits(&teacher, 1, 1.)?);
    Ok(())
}

#[test]
fn the_fused_top_k_equals_the_f64_reference_and_with_all_tokens_the_whole() -> Result<()> {
    let (n, k, vocab, temperature) = (7, 5, 11, 2.);
    let (x, w) = (random(&[n, k], 1, 2.)?, random(&[vocab + 1, k], 2, 1.)?);
    let teacher = random(&[n, vocab], 3, 4.)?;
    for divergence in ALL {
        let options = options(0.7, temperature, divergence, vocab);
        let of = |teacher: TeacherLogits| linear_distillation(head(&x, &w), teacher, &labels(n, vocab), &options);
        let whole = of(TeacherLogits::Logits(&teacher))?;
        for top_k in [1, 4, vocab - 1, vocab] {
            let top = TopKLogprobs::of_logits(&teacher, top_k, temperature)?;
            assert_matches_reference(&[&x, &w], 1e-4, |t| {
                let student = head(&t[0], &t[1]);
                Ok(linear_distillation(student, TeacherLogits::TopK(&top), &labels(n, vocab), &options)?.loss)
            })?;
            let part = of(TeacherLogits::TopK(&top))?;
            let gap = whole.divergence - part.divergence;
            // Outcomes that are merged hide a difference; only the last token as a tail is the whole distribution.
            if top_k >= vocab - 1 { assert!(gap.abs() < 1e-6, "{gap}") } else { assert!(gap > 1e-3, "{gap}") }
        }
    }
    Ok(())
}

#[test]
fn top_k_that_does_not_match_is_an_error() -> Result<()> {
    let (student, options) = (random(&[2, 5], 1, 1.)?, options(1., 1., Divergence::Forward, 5));
    let top = TopKLogprobs::of_logits(&student, 2, 1.)?;
    let of = |top: &TopKLogprobs| distillation_of_logits(&student, TeacherLogits::TopK(top), &[0, 1], &options);
    assert!(of(&top).is_ok());
    assert!(of(&TopKLogprobs { tail: vec![0.], ..top.clone() }).is_err());
    assert!(of(&TopKLogprobs { ids: vec![0, 1, 2, 5], ..top.clone() }).is_err());
    assert!(of(&TopKLogprobs { k: 6, ..top }).is_err());
    assert!(TopKLogprobs::of_logits(&student, 6, 1.).is_err() && TopKLogprobs::of_logits(&student, 0, 1.).is_err());
    Ok(())
}

/// One given row of logits, without the rounding of a matmul.
#[test]
fn adding_a_constant_changes_nothing_and_minus_infinity_is_probability_zero() {
    let random_logits = |seed| random(&[1000], seed, 4.).unwrap().to_vec1::<f32>().unwrap();
    let (alpha, temperature, label) = (0.7, 2., 5usize);
    let log_softmax = |row: &[f32], temperature: f64| -> Vec<f64> {
        let row_max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let gaps: Vec<f64> = row.iter().map(|&x| (f64::from(x) - row_max) / temperature).collect();
        let log_sum = gaps.iter().map(|x| x.exp()).sum::<f64>().ln();
        gaps.iter().map(|x| x - log_sum).collect()
    };
    for offset in [0f32, 1e3, 1e4] {
        let [mut student, mut teacher] =
            [1, 2].map(|seed| random_logits(seed).iter().map(|x| x + offset).collect::<Vec<_>>());
        teacher[3] = f32::NEG_INFINITY;
        (student[9], teacher[9]) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        let (soft, theirs) = (log_softmax(&student, temperature), log_softmax(&teacher, temperature));
        let hard = log_softmax(&student, 1.);
        let terms = theirs.iter().zip(&soft).filter(|(t, _)| **t > f64::NEG_INFINITY);
        let kl: f64 = terms.map(|(t, s)| t.exp() * (t - s)).sum();
        let mut gradient = vec![0f32; 1000];
        let row_params = RowLossParams { options: options(alpha, temperature, Divergence::Forward, 1000), scale: 1. };
        let [ours, cross_entropy] =
            row_params.row(&student, TeacherRow::Logits(&teacher), label as i64, Some(&mut gradient));
        assert!((ours / kl - 1.).abs() < 1e-5, "{offset}: {ours} is not {kl}");
        assert!((cross_entropy / -hard[label] - 1.).abs() < 1e-5, "{offset}: {cross_entropy} is not {}", -hard[label]);
        for i in 0..1000 {
            let label_factor = hard[i].exp() - f64::from(u8::from(i == label));
            let slope = alpha * temperature * (soft[i].exp() - theirs[i].exp()) + (1. - alpha) * label_factor;
            assert!((f64::from(gradient[i]) - slope).abs() < 1e-6, "{offset} {i}: {} is not {slope}", gradient[i]);
        }
    }
}

#[test]
fn both_terms_equal_the_separate_losses() -> Result<()> {
    let (x, w) = (random(&[30, 6], 1, 2.)?, random(&[20, 6], 2, 1.)?);
    let (tx, tw) = (random(&[30, 4], 3, 2.)?, random(&[20, 4], 4, 1.)?);
    let labels: Vec<i64> = (0..30).map(|i| i % 20).collect();
    let logits = crate::linear(&x, &w)?;
    for divergence in ALL {
        let options = options(0.7, 2., divergence, 20);
        let teacher = TeacherLogits::Head(head(&tx, &tw));
        let fused = linear_distillation(head(&x, &w), teacher, &labels, &options)?;
        let separate = distillation_of_logits(&logits, teacher, &labels, &options)?;
        assert!((fused.divergence - separate.divergence).abs() < 1e-5, "{divergence:?}");
        assert!((fused.cross_entropy - separate.cross_entropy).abs() < 1e-5);
        let alone = DistillationOptions { alpha: 1., ..options };
        let same = linear_distillation(head(&x, &w), TeacherLogits::Head(head(&x, &w)), &labels, &alone)?;
        assert!(same.divergence.abs() < 1e-6 && same.loss.to_scalar::<f32>()?.abs() < 1e-6, "{divergence:?}");
    }
    Ok(())
}

#[test]
fn mismatched_shapes_are_errors() -> Result<()> {
    let (x, w, other) = (random(&[3, 6], 1, 2.)?, random(&[5, 6], 2, 1.)?, random(&[4, 6], 2, 1.)?);
    let of = |teacher: &Tensor, labels: &[i64], vocab| {
        let options = options(1., 1., Divergence::Forward, vocab);
        linear_distillation(head(&x, &w), TeacherLogits::Head(head(&x, teacher)), labels, &options)
    };
    assert!(of(&w, &[0, 1, 2], 5).is_ok() && of(&other, &[0, 1, 2], 4).is_ok());
    assert!(of(&other, &[0, 1, 2], 5).is_err(), "more than the teacher has");
    assert!(of(&w, &[0, 1], 5).is_err() && of(&w, &[0, 1, 2], 6).is_err() && of(&w, &[0, 1, 2], 0).is_err());
    Ok(())
}
