//! The student at the start of distillation.

use llm_model::{Head, Model, ModelConfig};
use llm_tokenizer::Tokenizer;

use super::{DistillInputs, DistillRecipe};
use crate::compat::{check_same_tokens, refuse_overwritten};
use crate::recipes::load_model;
use crate::{Error, Result};

/// The student: loaded from a folder, made of layers of the teacher, or a new one. It has a row for each token of the teacher.
pub(super) fn first(
    recipe: &DistillRecipe,
    inputs: &DistillInputs,
    (teacher_config, tokenizer): (&ModelConfig, &Tokenizer),
) -> Result<Model> {
    if let Some(dir) = &inputs.student {
        if recipe.student_layers > 0 {
            let message =
                "student_layers makes a student of layers of the teacher; leave out --student, or set it to 0";
            return Err(Error::BadRequest(message.to_owned()));
        }
        let student = load_model(dir, Head::LanguageModel)?;
        let seq_len = inputs.text.as_ref().map_or(0, |_| recipe.seq_len);
        check_same_tokens((tokenizer, &inputs.teacher), (student.config(), dir), seq_len)?;
        return Ok(student);
    }
    if recipe.lora.is_some() || inputs.adapter.is_some() {
        let message = "an adapter needs a trained model below it; give the student's folder with --student";
        return Err(Error::BadRequest(message.to_owned()));
    }
    if recipe.student_layers > 0 {
        let layers = evenly_spaced(teacher_config.num_hidden_layers, recipe.student_layers)?;
        tracing::info!("the student has layers {layers:?} of the teacher, counted from 0");
        return Ok(load_model(&inputs.teacher, Head::LanguageModel)?.with_layers(&layers)?.trainable()?);
    }
    // Rows that pad the teacher's vocabulary are no tokens, and nothing would train those of the student.
    let config = ModelConfig {
        vocab_size: tokenizer.vocab_size(),
        max_position_embeddings: teacher_config.max_position_embeddings,
        bos_token_id: teacher_config.bos_token_id,
        eos_token_id: teacher_config.eos_token_id,
        pad_token_id: teacher_config.pad_token_id,
        ..recipe.student.clone()
    };
    refuse_overwritten("student", &recipe.student, &config, "the teacher")?;
    Ok(Model::init(config, Head::LanguageModel, recipe.seed)?)
}

/// `count` of `all` layers, evenly spaced, with the first and the last; one layer is the first.
fn evenly_spaced(all: usize, count: usize) -> Result<Vec<usize>> {
    if count > all {
        let message =
            format!("student_layers is {count}; the teacher has {all} layers, and the student cannot have more");
        return Err(Error::BadRequest(message));
    }
    let gaps = (count - 1).max(1);
    Ok((0..count).map(|i| (i * (all - 1) + gaps / 2) / gaps).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layers_of_a_student_are_evenly_spaced_with_the_first_and_the_last() {
        let of = |all, count| evenly_spaced(all, count).unwrap();
        assert_eq!(of(12, 6), [0, 2, 4, 7, 9, 11]);
        assert_eq!(of(4, 2), [0, 3]);
        assert_eq!(of(5, 3), [0, 2, 4]);
        assert_eq!(of(30, 4), [0, 10, 19, 29]);
        for all in 1..20 {
            assert_eq!(of(all, all), (0..all).collect::<Vec<_>>());
            assert_eq!(of(all, 1), [0]);
            for count in 2..=all {
                let layers = of(all, count);
                assert!(layers.is_sorted_by(|a, b| a < b) && layers.len() == count, "{layers:?}");
                assert_eq!((layers[0], layers[count - 1]), (0, all - 1));
            }
        }
        let message = evenly_spaced(4, 5).unwrap_err().to_string();
        assert!(message.contains("student_layers is 5; the teacher has 4 layers"), "{message}");
    }
}
