//! Properties of every decoder, and errors for invalid folders.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{D, DType, IndexOp, Tensor};
use llm_kernels::{BlockFormat, Precision};
use llm_model::{
    Batch, Head, KvCache, Model, ModelConfig, ModelType, ParamCount, Params, Weight, WeightDtype, write_safetensors,
};
use serde_json::{Value, json};

fn config() -> ModelConfig {
    ModelConfig {
        vocab_size: 40,
        hidden_size: 24,
        intermediate_size: 32,
        num_hidden_layers: 3,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        initializer_range: 0.3,
        ..ModelConfig::default()
    }
}

fn model() -> Model {
    Model::init(config(), Head::LanguageModel, 5).unwrap()
}

fn largest(x: &Tensor) -> f32 {
    x.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

fn max_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(D::Minus1).unwrap().to_scalar().unwrap()
}

fn ids(n: u32) -> Vec<u32> {
    (0..n).map(|i| (i * i * 7 + 3) % 40).collect()
}

#[test]
fn attention_is_causal() {
    let model = model();
    let (one, mut other) = (ids(12), ids(12));
    other[7] = 0;
    let logits = |row: &Vec<u32>| model.forward(&Batch::new(std::slice::from_ref(row)).unwrap()).unwrap();
    let (one, other) = (logits(&one), logits(&other));
    assert_eq!(max_difference(&one.i((.., ..7)).unwrap(), &other.i((.., ..7)).unwrap()), 0.);
    for t in 7..12 {
        assert!(max_difference(&one.i((.., t)).unwrap(), &other.i((.., t)).unwrap()) > 1e-3, "token {t} must change");
    }
}

#[test]
fn padding_on_either_side_does_not_change_the_logits() {
    let model = model();
    let (short, long) = (ids(5), ids(11));
    let alone = model.forward(&Batch::new(std::slice::from_ref(&short)).unwrap()).unwrap().i(0).unwrap();
    for pad in [0, 39] {
        let rows = [short.clone(), long.clone()];
        let right = model.forward(&Batch::right_padded(&rows, pad).unwrap()).unwrap();
        let padded = [[vec![pad; 6], short.clone()].concat(), long.clone()];
        let left = model.forward(&Batch::new(&padded).unwrap().with_padding(&[6, 0]).unwrap()).unwrap();
        assert!(max_difference(&right.i((0, ..5)).unwrap(), &alone) < 1e-5);
        assert!(max_difference(&left.i((0, 6..)).unwrap(), &alone) < 1e-5);
    }
    let unmarked = Batch::new(&[[vec![0; 6], short].concat()]).unwrap();
    assert!(
        max_difference(&model.forward(&unmarked).unwrap().i((0, 6..)).unwrap(), &alone) > 1e-3,
        "unmarked padding must change the logits"
    );
}

#[test]
fn masked_keys_do_not_affect_later_tokens() {
    let windowed = ModelConfig { model_type: ModelType::Mistral, sliding_window: Some(6), ..config() };
    let models = [model(), model().frozen().unwrap(), Model::init(windowed, Head::LanguageModel, 5).unwrap()];
    for model in models {
        let (one, mut other) = (ids(12), ids(12));
        for id in &mut other[6..8] {
            *id = (*id + 1) % 40;
        }
        let rows = [one.clone(), one.clone(), other.clone(), other];
        let batch = || Batch::new(&rows).unwrap();
        let later = |logits: &Tensor, row: usize| logits.i((row, 8..)).unwrap();
        let plain = model.forward(&batch()).unwrap();
        assert!(max_difference(&later(&plain, 0), &later(&plain, 2)) > 1e-3, "unmasked tokens must change the logits");
        let masked = batch().with_masked_keys(&[(6, 8), (0, 0), (6, 8), (3, 3)]).unwrap();
        let masked = model.forward(&masked).unwrap();
        assert!(max_difference(&later(&masked, 0), &later(&masked, 2)) < 1e-5);
        assert!(max_difference(&later(&masked, 0), &later(&plain, 0)) > 1e-3, "masking a token must change the logits");
        for row in [1, 3] {
            assert!(
                max_difference(&masked.i(row).unwrap(), &plain.i(row).unwrap()) < 1e-4,
                "an empty range masks nothing"
            );
        }
    }
    let error =
        |ranges: &[(u32, u32)]| Batch::new(&[ids(12)]).unwrap().with_masked_keys(ranges).unwrap_err().to_string();
    assert_eq!(error(&[]), "1 rows, but masked ranges for 0");
    assert_eq!(error(&[(4, 13)]), "row 0 masks 4..13; a range must be within 0..12");
    assert_eq!(error(&[(4, 3)]), "row 0 masks 4..3; a range must be within 0..12");
}

#[test]
fn logits_with_and_without_kv_cache_are_equal() {
    let model = model().frozen().unwrap();
    let rows = [ids(4), ids(9)];
    let continued: Vec<Vec<u32>> = rows.iter().map(|row| [row.as_slice(), &[11, 12, 13]].concat()).collect();
    let whole = continued.iter().map(|row| model.forward(&Batch::new(std::slice::from_ref(row)).unwrap()).unwrap());
    let whole: Vec<Tensor> = whole.map(|logits| logits.i(0).unwrap()).collect(); // (t, vocab)
    let mut cache = KvCache::new(model.config(), 2, 12, &model.device()).unwrap();
    let mut next = |rows: &[Vec<u32>]| {
        let batch = Batch::ragged(rows, cache.lens()).unwrap();
        let hidden = model.hidden(&batch, Some(&mut cache)).unwrap();
        model.output(&hidden).unwrap().i(0).unwrap() // (n, vocab)
    };
    let first = next(&rows);
    assert!(max_difference(&first.i(..4).unwrap(), &whole[0].i(..4).unwrap()) < 1e-4);
    assert!(max_difference(&first.i(4..).unwrap(), &whole[1].i(..9).unwrap()) < 1e-4);
    for (step, id) in [11, 12, 13].into_iter().enumerate() {
        let logits = next(&[vec![id], vec![id]]);
        for (row, at) in [4 + step, 9 + step].into_iter().enumerate() {
            let difference = max_difference(&logits.i(row).unwrap(), &whole[row].i(at).unwrap());
            assert!(difference < 1e-4, "step {step} row {row}");
        }
    }
    let full = Batch::ragged(&[vec![1], vec![2]], cache.lens()).unwrap();
    let message = model.hidden(&full, Some(&mut cache)).unwrap_err().to_string();
    assert_eq!(message, "the KV cache has 12 of 12 tokens; 1 more do not fit");
}

#[test]
fn attention_weights_sum_to_one_and_are_causal() {
    for weights in model().attentions(&Batch::new(&[ids(9)]).unwrap()).unwrap() {
        assert_eq!(weights.dims(), [1, 6, 9, 9]);
        let sums = weights.sum(D::Minus1).unwrap();
        assert!(max_difference(&sums, &sums.ones_like().unwrap()) < 1e-5);
        for (t, row) in weights.i((0, 0)).unwrap().to_vec2::<f32>().unwrap().iter().enumerate() {
            assert!(row[t + 1..].iter().all(|&w| w == 0.) && row[..=t].iter().all(|&w| w > 0.));
        }
    }
}

#[test]
fn initialisation_is_reproducible_and_saving_is_lossless() {
    let dir = tempfile::tempdir().unwrap();
    for (head, name) in [(Head::LanguageModel, "lm"), (Head::Sequence, "reward"), (Head::Token, "value")] {
        let model = Model::init(config(), head, 5).unwrap();
        let again = Model::init(config(), head, 5).unwrap();
        let other = Model::init(config(), head, 6).unwrap();
        let batch = Batch::new(&[ids(9)]).unwrap();
        let expected = model.forward(&batch).unwrap();
        assert_eq!(max_difference(&expected, &again.forward(&batch).unwrap()), 0.);
        assert!(max_difference(&expected, &other.forward(&batch).unwrap()) > 0.1);
        model.save(dir.path().join(name)).unwrap();
        let loaded = Model::load(dir.path().join(name)).unwrap();
        assert_eq!((loaded.head(), loaded.config()), (head, model.config()));
        assert_eq!(max_difference(&expected, &loaded.forward(&batch).unwrap()), 0.);
        assert!(loaded.params().vars().is_empty(), "a loaded model is frozen");
        let counted: usize = loaded.params().tensors().values().map(Tensor::elem_count).sum();
        assert_eq!(counted, ParamCount::of(model.config(), head).total());
    }
}

#[test]
fn changing_the_head_keeps_the_decoder() {
    let model = model();
    let batch = Batch::new(&[ids(9)]).unwrap();
    let scorer = model.with_head(Head::Sequence, 3).unwrap();
    let hidden = |model: &Model| model.hidden(&batch, None).unwrap();
    assert_eq!(max_difference(&hidden(&model), &hidden(&scorer)), 0.);
    assert_eq!(scorer.forward(&batch).unwrap().dims(), [1, 9, 1]);
    // The critic starts from the reward model: the same weight, and a bias of 0.
    let critic = scorer.with_head(Head::Token, 4).unwrap();
    assert_eq!(max_difference(&critic.forward(&batch).unwrap(), &scorer.forward(&batch).unwrap()), 0.);
}

/// The error for a saved model after `change`.
fn error_after(change: impl FnOnce(&Path)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    model().save(&path).unwrap();
    change(&path);
    Model::load(&path).unwrap_err().to_string()
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let path = path.join("config.json");
    let mut json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

#[test]
fn a_folder_of_models_is_rejected_with_their_names() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["base", "aligned"] {
        model().save(dir.path().join(name)).unwrap();
    }
    let message = Model::open(dir.path()).unwrap_err().to_string();
    assert!(message.ends_with("no config.json; choose a model in this folder: aligned, base"), "{message}");
}

#[test]
fn an_invalid_folder_is_rejected_by_file_and_key() {
    for (message, named) in [
        (error_after(|path| fs::remove_file(path.join("config.json")).unwrap()), &["config.json"][..]),
        (error_after(|path| fs::write(path.join("config.json"), "{").unwrap()), &["config.json"]),
        (
            error_after(|path| edit(path, |json| json["hidden_act"] = json!("relu"))),
            &["config.json", "hidden_act", "relu"],
        ),
        (
            error_after(|path| edit(path, |json| json["num_key_value_heads"] = json!(4))),
            &["num_key_value_heads", "4", "6"],
        ),
        (error_after(|path| edit(path, |json| json["num_hidden_layers"] = json!(4))), &["model.layers.3", "missing"]),
        (error_after(|path| edit(path, |json| json["intermediate_size"] = json!(33))), &["mlp", "32", "33"]),
        (error_after(|path| fs::remove_file(path.join("model.safetensors")).unwrap()), &["model.safetensors"]),
        (error_after(|path| fs::write(path.join("model.safetensors"), b"no").unwrap()), &["model.safetensors"]),
    ] {
        assert!(named.iter().all(|part| message.contains(part)), "{named:?}: {message}");
    }
    let outside = model().forward(&Batch::new(&[vec![40]]).unwrap()).unwrap_err().to_string();
    assert!(outside.contains("40") && outside.contains("vocabulary"), "{outside}");
    assert!(Batch::new(&[vec![1, 2], vec![3]]).is_err() && Batch::new(&[]).is_err());
}

#[test]
fn weight_formats_compute_with_their_rounded_weights() {
    let config = ModelConfig {
        vocab_size: 64,
        hidden_size: 256,
        intermediate_size: 96, // not a multiple of 256: falls back to q8_0
        num_attention_heads: 4,
        num_key_value_heads: 2,
        num_hidden_layers: 2,
        initializer_range: 0.1,
        ..ModelConfig::default()
    };
    let model = Model::init(config, Head::LanguageModel, 3).unwrap().frozen().unwrap();
    // More than 64 tokens: with fewer, blocks are multiplied with activations in 8 bits.
    let batch = Batch::new(&[(0..80).map(|i| i % 63 + 1).collect()]).unwrap();
    let logits = |model: &Model| model.forward(&batch).unwrap();
    let exact = logits(&model);
    let dir = tempfile::tempdir().unwrap();
    let mut gap_before = 0.;
    // From the most to the least precise format.
    for format in [
        WeightDtype::F32,
        WeightDtype::Bf16,
        WeightDtype::Quantized(BlockFormat::Q8_0),
        WeightDtype::Quantized(BlockFormat::Q6_K),
        WeightDtype::Quantized(BlockFormat::Q4_0),
    ] {
        let small = model.frozen_as(format).unwrap();
        let gap = max_difference(&logits(&small), &exact);
        assert!(gap > gap_before || format == WeightDtype::F32, "{format:?}: {gap} after {gap_before}");
        gap_before = gap;
        // The dequantised weights in f32 give the same logits.
        let tensors: BTreeMap<String, Tensor> =
            small.params().iter().map(|(name, w)| (name.to_owned(), w.to_dense().unwrap())).collect();
        // With formats below f32, activations are rounded to bf16 on CPUs with bf16 instructions.
        let precision = if format == WeightDtype::F32 { Precision::F32 } else { Precision::for_bf16_weights() };
        let rounded = |model: Model| logits(&model.in_precision(precision).unwrap());
        let widened = Model::new(small.config().clone(), Head::LanguageModel, Params::new(tensors)).unwrap();
        let (ours, most) = (logits(&small), 1e-5 * largest(&exact));
        assert!(max_difference(&ours, &rounded(widened)) < most, "{format:?}");

        let folder = dir.path().join(format!("{format:?}"));
        if let WeightDtype::Quantized(_) = format {
            assert!(small.save(&folder).unwrap_err().to_string().contains("save the model in f32 or bf16"));
        } else {
            small.save(&folder).unwrap();
            assert!(max_difference(&rounded(Model::load(&folder).unwrap()), &ours) < most, "{format:?}");
        }
    }
}

#[test]
fn a_mapped_model_matches_the_loaded_one_and_saves_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (path, again) = (dir.path().join("m"), dir.path().join("again"));
    let batch = Batch::new(&[ids(9)]).unwrap();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let half = |t: &Tensor| if t.rank() == 2 { t.to_dtype(dtype).unwrap() } else { t.clone() };
        let mut model = model();
        model.save(&path).unwrap();
        let tensors = model.params().tensors().iter().map(|(name, t)| (name.clone(), half(t))).collect();
        write_safetensors(&path.join("model.safetensors"), &tensors).unwrap();
        model = Model::load(&path).unwrap();
        let mapped = Model::open(&path).unwrap();
        assert!(mapped.params().tensors().values().all(|t| t.rank() == 1), "{dtype:?}: a matrix was copied");
        assert!(mapped.params().iter().all(|(_, w)| !matches!(w, Weight::Mapped(w) if w.dtype() != dtype)));
        let expected = model.forward(&batch).unwrap();
        let rounding = if dtype == DType::BF16 { 0.02 } else { 1e-5 };
        assert!(
            max_difference(&expected, &mapped.forward(&batch).unwrap()) < rounding * largest(&expected).max(1.),
            "{dtype:?}"
        );
        assert!(
            max_difference(&expected, &mapped.frozen_as(WeightDtype::F32).unwrap().forward(&batch).unwrap()) < 1e-5
        );
        let trained = mapped.trainable().unwrap();
        assert_eq!(trained.params().vars().len(), trained.params().tensors().len());
        let name = "model.embed_tokens.weight";
        assert_eq!(max_difference(&model.params().tensors()[name], &trained.params().tensors()[name]), 0.);

        mapped.save(&again).unwrap();
        let bytes = |dir: &Path| fs::read(dir.join("model.safetensors")).unwrap();
        assert!(bytes(&path) == bytes(&again), "{dtype:?}");
    }
}

#[test]
fn shards_must_match_the_index() {
    let dir = tempfile::tempdir().unwrap();
    let model = model().frozen().unwrap();
    let path = dir.path();
    model.save(path).unwrap();
    fs::remove_file(path.join("model.safetensors")).unwrap();
    let mut shards = [BTreeMap::new(), BTreeMap::new()];
    for (i, (name, tensor)) in model.params().tensors().iter().enumerate() {
        shards[i % 2].insert(name.clone(), tensor.clone());
    }
    let write = |shards: &[BTreeMap<String, Tensor>; 2], map: &serde_json::Map<String, Value>| {
        for (i, shard) in shards.iter().enumerate() {
            write_safetensors(&path.join(format!("{i}.safetensors")), shard).unwrap();
        }
        fs::write(path.join("model.safetensors.index.json"), json!({"weight_map": map}).to_string()).unwrap();
    };
    let indexed = shards.iter().enumerate();
    let map: serde_json::Map<_, _> = indexed
        .flat_map(|(i, s)| s.keys().map(move |name| (name.clone(), json!(format!("{i}.safetensors")))))
        .collect();
    write(&shards, &map);
    let batch = Batch::new(&[ids(9)]).unwrap();
    let expected = Model::open(path).unwrap().forward(&batch).unwrap();
    assert!(max_difference(&expected, &model.forward(&batch).unwrap()) < 1e-5);

    let assert_rejected =
        |shards: &[BTreeMap<String, Tensor>; 2], map: &serde_json::Map<String, Value>, expected: &[&str]| {
            write(shards, map);
            let message = Model::open(path).unwrap_err().to_string();
            assert!(expected.iter().all(|part| message.contains(part)), "{message}");
        };
    let name = "model.norm.weight";
    let mut more = shards.clone();
    for shard in &mut more {
        shard.insert(name.to_owned(), model.params().tensors()[name].clone());
    }
    assert_rejected(&more, &map, &["index.json", "has a tensor \"model.norm.weight\""]);
    let mut fewer = map.clone();
    fewer.remove(name);
    assert_rejected(&shards, &fewer, &["model.norm.weight", "the index does not list for it"]);
    let mut elsewhere = map.clone();
    elsewhere[name] = json!("../0.safetensors");
    assert_rejected(&shards, &elsewhere, &["../0.safetensors", "not a file name in this folder"]);
    let mut moved = map;
    let other = if moved[name] == "0.safetensors" { "1.safetensors" } else { "0.safetensors" };
    moved[name] = json!(other);
    assert_rejected(&shards, &moved, &["lacks the tensor \"model.norm.weight\""]);
}

#[test]
fn an_oversized_config_json_is_rejected_unread() {
    let dir = tempfile::tempdir().unwrap();
    fs::File::create(dir.path().join("config.json")).unwrap().set_len(1 << 30).unwrap();
    let message = Model::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("config.json: the file has") && message.contains("bytes"), "{message}");
}
