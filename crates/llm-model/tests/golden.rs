//! Compares the outputs of checkpoints written by transformers with the outputs of transformers (`golden/make.py`).

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{D, IndexOp, Tensor};
use llm_kernels::cross_entropy;
use llm_model::{Batch, Head, Model, read_safetensors};

const TOLERANCE: f32 = 1e-4;

fn folder(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden", name].iter().collect()
}

fn rows(ids: &Tensor) -> Vec<Vec<u32>> {
    ids.to_dtype(candle_core::DType::U32).unwrap().to_vec2().unwrap()
}

fn assert_near(what: &str, ours: &Tensor, theirs: &Tensor) {
    assert_eq!(ours.dims(), theirs.dims(), "{what}");
    let difference = (ours - theirs).unwrap().abs().unwrap().flatten_all().unwrap().max(D::Minus1).unwrap();
    let max = theirs.abs().unwrap().flatten_all().unwrap().max(D::Minus1).unwrap().to_scalar::<f32>().unwrap();
    let difference = difference.to_scalar::<f32>().unwrap();
    assert!(difference <= TOLERANCE * max.max(1.), "{what}: difference {difference}, maximum {max}");
}

/// The output as transformers returns it: the logits of every token, or the score of the last token.
fn transformers_output(model: &Model, batch: &Batch) -> Tensor {
    let all = model.forward(batch).unwrap();
    let last = all.dim(1).unwrap() - 1;
    if model.head() == Head::Sequence { all.i((.., last)).unwrap() } else { all }
}

fn check(name: &str, head: Head) {
    let expected: BTreeMap<String, Tensor> = read_safetensors(&folder(name).join("expected.safetensors")).unwrap();
    let model = Model::load(folder(name)).unwrap();
    assert_eq!(model.head(), head);
    let ids = rows(&expected["input_ids"]);
    let batch = Batch::new(&ids).unwrap();

    assert_near("logits", &transformers_output(&model, &batch), &expected["logits"]);
    for (layer, weights) in model.attentions(&batch).unwrap().iter().enumerate() {
        assert_near(&format!("attention of layer {layer}"), weights, &expected[&format!("attention.{layer}")]);
    }

    let padded = rows(&expected["padded_ids"]);
    let batch_padded = Batch::new(&padded).unwrap().with_padding(&[0, 3]).unwrap();
    let (ours, theirs) = (transformers_output(&model, &batch_padded), &expected["padded_logits"]);
    for (row, padding) in [(0, 0), (1, 3)] {
        // Ignore the outputs at padding.
        let valid =
            |x: &Tensor| if head == Head::Sequence { x.i(row).unwrap() } else { x.i((row, padding..)).unwrap() };
        assert_near("padded logits", &valid(&ours), &valid(theirs));
    }

    let model = model.trainable().unwrap();
    let logits = transformers_output(&model, &batch);
    let loss = match head {
        Head::Sequence | Head::Scores(_) => logits.mean_all().unwrap(),
        Head::Token => logits.sqr().unwrap().mean_all().unwrap(),
        Head::LanguageModel => {
            let t = ids[0].len();
            let labels: Vec<i64> = ids.iter().flat_map(|row| row[1..].iter().map(|&id| i64::from(id))).collect();
            let before = logits.i((.., ..t - 1)).unwrap().flatten(0, 1).unwrap();
            cross_entropy(&before, &labels).unwrap().mean_all().unwrap()
        }
    };
    assert_near("loss", &loss.reshape(1).unwrap(), &expected["loss"]);
    let grads = loss.backward().unwrap();
    for (name, var) in &model.params().vars() {
        assert_near(&format!("gradient of {name}"), grads.get(var).unwrap(), &expected[&format!("grad.{name}")]);
    }
}

#[test]
fn a_tied_model_matches_transformers() {
    check("tied", Head::LanguageModel);
}

#[test]
fn an_untied_sharded_model_matches_transformers() {
    check("untied", Head::LanguageModel);
}

#[test]
fn bf16_weights_match_transformers() {
    check("bf16", Head::LanguageModel);
}

#[test]
fn a_reward_model_matches_transformers() {
    check("reward", Head::Sequence);
}

#[test]
fn a_value_model_matches_transformers() {
    check("value", Head::Token);
}
