//! A ragged batch gives each row what it gets alone.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use candle_core::{D, IndexOp, Tensor};
use llm_model::{Batch, Head, KvCache, LayerType, Model, ModelConfig, ModelType, RopeScaling};

/// The rounding errors of the logits: a matmul with few rows adds in another order than one with many.
const TOLERANCE: f32 = 1e-5;

fn config() -> ModelConfig {
    ModelConfig {
        vocab_size: 40,
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        max_position_embeddings: 64,
        initializer_range: 0.3,
        ..ModelConfig::default()
    }
}

/// Models with full attention, with a sliding window in one layer and in all, and with frequencies that depend on the length.
fn models() -> Vec<(&'static str, Model)> {
    let windows = ModelConfig { model_type: ModelType::Mistral, sliding_window: Some(6), ..config() };
    let gemma = ModelConfig {
        model_type: ModelType::Gemma3Text,
        norm: llm_model::NormKind::RmsPlusOne,
        norm_placement: llm_model::NormPlacement::Sandwich,
        qk_norm: Some(llm_model::QkNorm::Head),
        hidden_act: llm_model::Activation::GeluPytorchTanh,
        scale_embeddings: true,
        sliding_window: Some(5),
        rope_local_theta: Some(1000.),
        layer_types: vec![LayerType::SlidingAttention, LayerType::FullAttention],
        query_pre_attn_scalar: Some(8.),
        ..config()
    };
    let dynamic =
        ModelConfig { max_position_embeddings: 8, rope_scaling: RopeScaling::Dynamic { factor: 4. }, ..config() };
    let init = |config| Model::init(config, Head::LanguageModel, 7).unwrap().frozen().unwrap();
    vec![("full", init(config())), ("windows", init(windows)), ("gemma", init(gemma)), ("dynamic", init(dynamic))]
}

fn rows() -> Vec<Vec<u32>> {
    [13, 5, 1, 20].iter().map(|&len| (0..len).map(|i| (i * 7 + len) % 40).collect()).collect()
}

fn max_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(D::Minus1).unwrap().to_scalar().unwrap()
}

/// The logits `(n, vocab)` of the next tokens of each row.
fn next(model: &Model, cache: &mut KvCache, rows: &[&[u32]]) -> Tensor {
    let batch = Batch::ragged(rows, cache.lens()).unwrap();
    model.output(&model.hidden(&batch, Some(cache)).unwrap()).unwrap().i(0).unwrap()
}

#[test]
fn rows_without_a_cache_get_what_they_get_alone() {
    for (name, model) in models() {
        let rows = rows();
        let logits = model.forward(&Batch::ragged(&rows, &[0; 4]).unwrap()).unwrap().i(0).unwrap();
        let mut start = 0;
        for row in rows {
            let alone = model.forward(&Batch::new(std::slice::from_ref(&row)).unwrap()).unwrap().i(0).unwrap();
            let difference = max_difference(&logits.i(start..start + row.len()).unwrap(), &alone);
            assert!(difference < TOLERANCE, "{name}, {} tokens: {difference}", row.len());
            start += row.len();
        }
    }
}

/// Prefill at once and in chunks, decoding, and steps in which some rows have no token.
#[test]
fn rows_with_a_cache_get_what_they_get_alone() {
    let whole: &[[usize; 4]] = &[[12, 4, 0, 19], [1, 1, 1, 1]];
    let chunks: &[[usize; 4]] = &[[5, 3, 1, 1], [7, 0, 0, 10], [0, 1, 0, 8], [1, 1, 0, 1]];
    for ((name, model), (what, steps)) in
        models().iter().flat_map(|model| [(model, ("whole", whole)), (model, ("in chunks", chunks))])
    {
        let rows = rows();
        let mut cache = KvCache::new(model.config(), 4, 20, &model.device()).unwrap();
        let mut alone: Vec<KvCache> =
            rows.iter().map(|_| KvCache::new(model.config(), 1, 20, &model.device()).unwrap()).collect();
        for lens in steps {
            let past = cache.lens().to_vec();
            let tokens: Vec<&[u32]> = (0..4).map(|row| &rows[row][past[row]..past[row] + lens[row]]).collect();
            let together = next(model, &mut cache, &tokens);
            let mut start = 0;
            for (row, tokens) in tokens.into_iter().enumerate().filter(|(_, tokens)| !tokens.is_empty()) {
                let expected = next(model, &mut alone[row], &[tokens]);
                let difference = max_difference(&together.i(start..start + tokens.len()).unwrap(), &expected);
                assert!(difference < TOLERANCE, "{name} {what}, row {row} after {}: {difference}", past[row]);
                start += tokens.len();
            }
        }
        assert_eq!(cache.lens(), [13, 5, 1, 20], "{what}");
    }
}

#[test]
fn rows_that_do_not_match_are_errors() {
    let (_, model) = models().swap_remove(0);
    let mut cache = KvCache::new(model.config(), 2, 4, &model.device()).unwrap();
    assert!(Batch::ragged(&[vec![1], vec![2]], &[0]).is_err(), "two rows, one length");
    assert!(Batch::ragged(&[vec![], vec![]], &[0, 0]).is_err(), "no token");
    let one = Batch::ragged(&[vec![1]], &[0]).unwrap();
    let message = model.hidden(&one, Some(&mut cache)).unwrap_err().to_string();
    assert_eq!(message, "the batch has 1 rows; the KV cache has 2");
    let long = Batch::ragged(&[vec![1], vec![1; 5]], &[0, 0]).unwrap();
    let message = model.hidden(&long, Some(&mut cache)).unwrap_err().to_string();
    assert_eq!(message, "the KV cache has 0 of 4 tokens; 5 more do not fit");
    assert!(Batch::ragged(&[vec![1]], &[0]).unwrap().with_padding(&[0]).is_err(), "padding in a ragged batch");
}
