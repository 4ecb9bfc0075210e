//! Compares the attention weights, the value norms and the effect of ablated heads of each family with transformers
//! (`golden/make_attention.py`).

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, IndexOp, Tensor};
use llm_model::{Ablation, AblationKind, Batch, Head, Model, ModelConfig, read_safetensors};

/// The queries of the golden weights, and the ablated heads, as in `golden/make_attention.py`.
const ROWS: [usize; 4] = [0, 5, 17, 59];
const ABLATED: [(usize, usize); 3] = [(0, 1), (2, 0), (2, 3)];
const TOKENS: usize = 60;
/// Absolute tolerance of weights and norms, and of logits.
const TOLERANCE: f32 = 1e-4;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Each family: its name, model and the first tokens of its golden text.
fn families() -> impl Iterator<Item = (String, Model, Batch)> {
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(golden().join("families")).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders.into_iter().map(|path| {
        let expected = read_safetensors(&path.join("expected.safetensors")).unwrap();
        let ids: Vec<u32> =
            expected["long_ids"].i((0, ..TOKENS)).unwrap().to_dtype(DType::U32).unwrap().to_vec1().unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, Model::load(&path).unwrap(), Batch::new(&[ids]).unwrap())
    })
}

fn expected() -> BTreeMap<String, Tensor> {
    read_safetensors(&golden().join("attention.safetensors")).unwrap()
}

fn ablations(kind: AblationKind) -> Vec<Ablation> {
    ABLATED.iter().map(|&(layer, head)| Ablation { layer, head, kind }).collect()
}

#[track_caller]
fn assert_near(what: &str, ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let far = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
    assert!(far <= TOLERANCE, "{what}: difference {far}");
}

fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn weights_and_value_norms_of_every_family_match_transformers() {
    let expected = expected();
    for (name, model, batch) in families() {
        let (weights, norms) = (&expected[&format!("{name}.weights")], &expected[&format!("{name}.value_norms")]);
        let mut heads = 0;
        let on_head = &mut |head: &llm_model::HeadAttention| {
            let (layer, h) = (head.layer, head.head);
            assert_eq!(head.weights.dims(), [1, TOKENS, TOKENS]);
            for (at, &row) in ROWS.iter().enumerate() {
                let theirs = flat(&weights.i((layer, h, at)).unwrap());
                assert_near(&format!("{name} {layer}.{h}, query {row}"), &flat(&head.weights.i((0, row))?), &theirs);
            }
            let theirs = flat(&norms.i((layer, h)).unwrap());
            assert_near(&format!("{name} {layer}.{h}, norms"), &flat(&head.value_norms), &theirs);
            heads += 1;
            Ok(())
        };
        let hidden = model.inspect_heads(&batch, &[], on_head).unwrap();
        assert_eq!(heads, weights.dim(0).unwrap() * weights.dim(1).unwrap(), "{name}");
        let plain = model.hidden(&batch, None).unwrap();
        assert_near(&format!("{name}, hidden states"), &flat(&hidden), &flat(&plain));
    }
}

#[test]
fn ablated_heads_of_every_family_have_the_effect_that_they_have_in_transformers() {
    let expected = expected();
    for (name, model, batch) in families() {
        for (kind, suffix) in [(AblationKind::Zero, "zero"), (AblationKind::Mean, "mean")] {
            let hidden = model.hidden_ablated(&batch, &ablations(kind)).unwrap();
            let logits = model.output(&hidden.i((.., TOKENS - 1..)).unwrap()).unwrap();
            assert_near(&format!("{name}, {suffix}"), &flat(&logits), &flat(&expected[&format!("{name}.{suffix}")]));
        }
    }
}

#[test]
fn the_weights_of_an_inspection_are_those_of_attentions() {
    let (_, model, batch) = families().next().unwrap();
    let all = model.attentions(&batch).unwrap();
    let on_head = &mut |head: &llm_model::HeadAttention| {
        assert_eq!(flat(&head.weights), flat(&all[head.layer].i((.., head.head))?));
        Ok(())
    };
    model.inspect_heads(&batch, &[], on_head).unwrap();
}

#[test]
fn a_head_that_is_not_in_the_model_is_an_error() {
    let config = ModelConfig { vocab_size: 50, hidden_size: 48, num_hidden_layers: 2, ..ModelConfig::default() };
    let model = Model::init(config, Head::LanguageModel, 1).unwrap();
    let batch = Batch::new(&[vec![1, 2, 3]]).unwrap();
    let heads = model.config().num_attention_heads;
    for (layer, head) in [(2, 0), (0, heads)] {
        let error = model.hidden_ablated(&batch, &[Ablation { layer, head, kind: AblationKind::Zero }]).unwrap_err();
        let expected = format!("head {layer}.{head} is not in the model; it has 2 layers of {heads} heads");
        assert!(error.to_string().starts_with(&expected) && error.is_callers_fault(), "{error}");
    }
}
