//! Trainable token rows of an adapter.

use candle_core::{IndexOp, Tensor};
use llm_model::{Batch, Head, LoraConfig, Model, ModelConfig, Params, TokenIndices};

use super::{bits, kinds, loss, max_difference, number, small, text, train};

/// A small model with an untied output layer.
fn untied() -> Model {
    let config = ModelConfig { tie_word_embeddings: false, ..small().config().clone() };
    Model::init(config, Head::LanguageModel, 5).unwrap().frozen().unwrap()
}

#[test]
fn rows_of_tokens_are_trained_in_both_matrices_and_merged_bit_for_bit() {
    for base in [small(), untied()] {
        let tokens = [29u32, 8, 7];
        let indices = TokenIndices::of_both(base.config(), tokens.to_vec());
        let config = LoraConfig { trainable_token_indices: Some(indices), ..kinds()[0].clone() };
        let model = base.with_lora(&config, 1).unwrap();
        let matrices: &[&str] = if base.config().tie_word_embeddings {
            &["model.embed_tokens"]
        } else {
            &["model.embed_tokens", "lm_head"]
        };
        let rows = |name: &str| model.params().vars()[&format!("{name}.token_adapter.trainable_tokens_delta")].clone();
        assert_eq!(model.params().vars().keys().filter(|name| name.contains("token_adapter")).count(), matrices.len());
        train(&model, &text(), 10);
        let (merged, batch) = (model.merged().unwrap(), Batch::new(&text()).unwrap());
        assert!(max_difference(&merged.forward(&batch).unwrap(), &model.forward(&batch).unwrap()) <= 1e-5);
        for name in matrices {
            let (rows, weight) = (rows(name), format!("{name}.weight"));
            let (before, after) = (&base.params().tensors()[&weight], &merged.params().tensors()[&weight]);
            for id in 0..40u32 {
                let row = |matrix: &Tensor, i: usize| bits(&matrix.get(i).unwrap());
                let expected = match tokens.iter().position(|&token| token == id) {
                    Some(at) => row(rows.as_tensor(), at),
                    None => row(before, id as usize),
                };
                assert_eq!(row(after, id as usize), expected, "{weight}, row {id}");
            }
            assert!(
                tokens
                    .iter()
                    .all(|&id| { bits(&before.get(id as usize).unwrap()) != bits(&after.get(id as usize).unwrap()) })
            );
        }
        // The logits and the fused loss use the same matrix.
        let by_logits = {
            let logits = model.forward(&batch).unwrap().i((.., ..6)).unwrap().flatten(0, 1).unwrap();
            let labels: Vec<i64> = text().iter().flat_map(|row| row[1..].iter().map(|&id| i64::from(id))).collect();
            number(&llm_kernels::cross_entropy(&logits, &labels).unwrap().mean_all().unwrap())
        };
        assert!((by_logits - number(&loss(&model, &text()))).abs() < 1e-5);
    }
}

#[test]
fn untrained_tokens_are_found_by_similar_rows() {
    let base = small();
    assert!(base.untrained_tokens(&[1, 2, 3], &[0, 1, 2, 3]).unwrap().is_empty(), "fresh rows differ");
    let mut tensors = base.params().tensors();
    let embedding = tensors["model.embed_tokens.weight"].copy().unwrap();
    let row = embedding.get(2).unwrap().unsqueeze(0).unwrap();
    for (id, factor) in [(3usize, 1.01), (5, 0.7), (6, 0.)] {
        let noise = (embedding.get(id).unwrap().unsqueeze(0).unwrap() * 0.05).unwrap();
        let similar = ((&row + noise).unwrap() * factor).unwrap();
        embedding.slice_set(&similar.contiguous().unwrap(), 0, id).unwrap();
    }
    tensors.insert("model.embed_tokens.weight".to_owned(), embedding);
    let model = Model::new(base.config().clone(), Head::LanguageModel, Params::new(tensors)).unwrap();
    assert_eq!(model.untrained_tokens(&[1, 2, 3, 4], &[]).unwrap(), [2, 3]);
    assert_eq!(model.untrained_tokens(&[1, 2, 4], &[0, 5]).unwrap(), [2], "row 5 is similar to row 2");
    assert_eq!(model.untrained_tokens(&[1, 6], &[]).unwrap(), [6], "a row of zeros");
}
