//! Compares roll-out, head scores and the effects of ablations with numpy and transformers (`golden/make_attention.py`).

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::path::{Path, PathBuf};

use llm_engine::Error;
use llm_engine::attention::{Attention, AttentionOptions, HeadScores, MAX_TOKENS, ablation_effect, head_effects};
use llm_model::{Ablation, AblationKind, Head, Model, ModelConfig};
use serde_json::Value;

/// The weights are f32, the golden numbers have 7 digits.
const TOLERANCE: f64 = 2e-5;

fn crate_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Each golden model with its numbers.
fn cases() -> Vec<(String, Model, Vec<u32>, Value)> {
    let text = std::fs::read_to_string(crate_dir().join("tests/golden/attention.json")).unwrap();
    let cases: Value = serde_json::from_str(&text).unwrap();
    let case = |(name, numbers): (&String, &Value)| {
        let folder = crate_dir().join("../llm-model/tests/golden/families").join(name);
        let ids = serde_json::from_value(numbers["ids"].clone()).unwrap();
        (name.clone(), Model::load(folder).unwrap(), ids, numbers.clone())
    };
    cases.as_object().unwrap().iter().map(case).collect()
}

#[track_caller]
fn assert_near(what: &str, ours: impl IntoIterator<Item = f64>, theirs: &Value) {
    let ours: Vec<f64> = ours.into_iter().collect();
    let theirs: Vec<f64> = theirs.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert!((ours - theirs).abs() <= TOLERANCE, "{what}: {ours} is not {theirs}");
    }
}

#[test]
fn the_rollout_is_that_of_numpy() {
    for (name, model, ids, numbers) in cases() {
        for (query, key) in [(ids.len() - 1, "rollout_of_last_token"), (13, "rollout_of_token_13")] {
            let options = AttentionOptions { queries: query..query + 1, ..AttentionOptions::default() };
            let attention = Attention::of(&model, &ids, &options).unwrap();
            for (layer, theirs) in attention.rollout.iter().zip(numbers[key].as_array().unwrap()) {
                assert_near(&format!("{name}, {key}"), layer.weights.iter().map(|&x| f64::from(x)), theirs);
            }
            assert_eq!(attention.layers(), numbers[key].as_array().unwrap().len());
        }
    }
}

#[test]
fn head_scores_are_those_of_the_patterns_of_transformerlens() {
    for (name, model, ids, numbers) in cases() {
        for skip_first in [false, true] {
            let options = AttentionOptions { skip_first, ..AttentionOptions::default() };
            let attention = Attention::of(&model, &ids, &options).unwrap();
            let theirs = numbers["scores"][usize::from(skip_first)].as_array().unwrap();
            assert_eq!(attention.heads.len(), theirs.len());
            for (head, theirs) in attention.heads.iter().zip(theirs) {
                let HeadScores { previous_token, duplicate_token, induction, first_token } = head.scores;
                let keys = ["previous_token", "duplicate_token", "induction", "first_token"];
                let theirs = Value::from(keys.map(|key| theirs[key].clone()).to_vec());
                let what = format!("{name} {}.{}, {skip_first}", head.layer, head.head);
                assert_near(&what, [previous_token, duplicate_token, induction, first_token], &theirs);
            }
        }
    }
}

#[test]
fn the_effect_of_ablations_is_that_of_transformers() {
    for (name, model, ids, numbers) in cases() {
        let ablations = [(0, 1), (2, 3)].map(|(layer, head)| Ablation { layer, head, kind: AblationKind::Zero });
        let effect = ablation_effect(&model, &ids, &ablations, &[ids.len() - 1, 3], 5).unwrap();
        assert_near(&name, effect.kl.iter().copied(), &numbers["kl"]);
        let positions: Vec<usize> = effect.changes.iter().map(|change| change.position).collect();
        let most = (0..ids.len()).max_by(|&a, &b| effect.kl[a].total_cmp(&effect.kl[b])).unwrap();
        assert!(positions.starts_with(&[ids.len() - 1, 3]) && positions.contains(&most), "{positions:?}");
        for change in &effect.changes {
            assert!(change.tokens.len() >= 5 && change.tokens.is_sorted_by(|a, b| a.before >= b.before));
            assert!(change.tokens.iter().map(|token| token.before).sum::<f64>() <= 1. + 1e-9);
        }
        let mut each = head_effects(&model, &ids, AblationKind::Zero, 13).unwrap();
        assert!(each.is_sorted_by(|a, b| a.kl >= b.kl));
        each.sort_by_key(|effect| (effect.ablation.layer, effect.ablation.head));
        assert_near(&name, each.iter().map(|effect| effect.kl), &numbers["kl_of_each"]);
    }
}

#[test]
fn the_weights_of_several_queries_are_their_mean() {
    let (_, model, ids, _) = cases().remove(0);
    let of = |queries| {
        let options = AttentionOptions { queries, ..AttentionOptions::default() };
        Attention::of(&model, &ids, &options).unwrap().heads.remove(2).weights
    };
    let (both, one, other) = (of(8..10), of(8..9), of(9..10));
    for (both, (one, other)) in both.iter().zip(one.iter().zip(&other)) {
        assert!((both - f32::midpoint(*one, *other)).abs() < 1e-6);
    }
    assert!(of(0..0).iter().all(|&weight| weight == 0.));
}

#[test]
fn a_text_that_is_empty_or_too_long_is_an_error() {
    let config = ModelConfig { vocab_size: 50, hidden_size: 48, num_hidden_layers: 1, ..ModelConfig::default() };
    let short = ModelConfig { max_position_embeddings: 16, ..config.clone() };
    let long = ModelConfig { max_position_embeddings: 1 << 16, ..config };
    for (config, limit) in [(short, 16), (long, MAX_TOKENS)] {
        let model = Model::init(config, Head::LanguageModel, 1).unwrap();
        let of = |tokens| Attention::of(&model, &vec![1; tokens], &AttentionOptions::default());
        assert!(matches!(of(0), Err(Error::EmptyPrompt)));
        let error = of(limit + 1).unwrap_err();
        assert!(error.is_callers_fault() && error.to_string().ends_with(&format!("at most {limit}")), "{error}");
    }
}

#[test]
fn a_model_with_a_score_head_has_attention_but_predicts_no_tokens() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../llm-model/tests/golden/reward");
    let model = Model::load(folder).unwrap();
    assert!(Attention::of(&model, &[3, 4, 5], &AttentionOptions::default()).is_ok());
    assert!(matches!(ablation_effect(&model, &[3, 4, 5], &[], &[], 5), Err(Error::NotALanguageModel)));
}
