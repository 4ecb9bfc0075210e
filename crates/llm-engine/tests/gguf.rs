//! A model converted to GGUF and back is the same model; invalid files are rejected with the name of the problem.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::fs;
use std::path::Path;

use candle_core::quantized::gguf_file::Content;
use candle_core::{D, Device, Tensor};
use llm_engine::{GenerateOptions, Sampling, TextModel, generate};
use llm_model::gguf::{GgufFile, Value};
use llm_model::{Batch, BlockFormat, Head, Model, ModelConfig, WeightDtype};
use llm_tokenizer::{ChatMessage, TrainConfig, train_bpe};

/// Unusual on purpose: grouped-query attention, `head_dim` not `hidden_size / heads`, more embedding rows than tokens.
fn text_model(tied: bool) -> TextModel {
    let texts = ["the cat sat on the mat", "the dog sat on the log"];
    let tokenizer = train_bpe(&TrainConfig { vocab_size: 280, min_frequency: 2 }, texts.iter()).unwrap();
    let config = ModelConfig {
        vocab_size: 285,
        hidden_size: 256,
        intermediate_size: 96, // not a multiple of 256
        num_hidden_layers: 2,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        head_dim: 16,
        rope_theta: 5e5,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: tied,
        initializer_range: 0.1,
        bos_token_id: Some(0),
        eos_token_id: Some(5),
        pad_token_id: Some(1),
        ..ModelConfig::default()
    };
    let model = Model::init(config, Head::LanguageModel, 7).unwrap().frozen().unwrap();
    TextModel { model, tokenizer: tokenizer.with_default_chat_template().unwrap() }
}

fn logits(model: &Model) -> Tensor {
    model.forward(&Batch::new(&[vec![7, 3, 200, 41, 280, 9, 9]]).unwrap()).unwrap()
}

fn max_difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(D::Minus1).unwrap().to_scalar().unwrap()
}

/// All types with the tolerance of the logits, which are at most about 6.
const KINDS: [(WeightDtype, f32); 7] = [
    (WeightDtype::F32, 1e-5),
    (WeightDtype::F16, 0.02),
    (WeightDtype::Bf16, 0.1),
    (WeightDtype::Quantized(BlockFormat::Q8_0), 0.3),
    (WeightDtype::Quantized(BlockFormat::Q6_K), 0.6),
    (WeightDtype::Quantized(BlockFormat::Q4_0), 4.),
    (WeightDtype::Quantized(BlockFormat::Q4_K), 4.),
];

#[test]
fn config_tokenizer_and_logits_survive_the_round_trip() {
    let dir = tempfile::tempdir().unwrap();
    for tied in [true, false] {
        let before = text_model(tied);
        let expected = logits(&before.model);
        for (kind, tolerance) in KINDS {
            let path = dir.path().join(format!("{tied}-{kind:?}.gguf"));
            before.save_gguf(&path, Some(kind)).unwrap();
            let after = TextModel::open(&path).unwrap();
            assert_eq!(after.model.config(), &ModelConfig { initializer_range: 0.02, ..before.model.config().clone() });
            let gap = max_difference(&logits(&after.model), &expected);
            assert!(gap <= tolerance && (gap > 0. || kind == WeightDtype::F32), "{kind:?}: {gap}");
            let chat = [ChatMessage::new("user", "the cat 🐈?")];
            assert_eq!(after.chat_ids(&chat).unwrap(), before.chat_ids(&chat).unwrap());
            assert_eq!(after.stop_ids(), before.stop_ids());

            // Saving again in the same format gives the same bytes.
            let again = dir.path().join("again.gguf");
            after.save_gguf(&again, None).unwrap();
            assert!(fs::read(&again).unwrap() == fs::read(&path).unwrap(), "{kind:?}");
            fs::remove_file(&again).unwrap();
        }
    }
}

#[test]
fn a_folder_converted_from_gguf_generates_the_same_text() {
    let dir = tempfile::tempdir().unwrap();
    let before = text_model(false);
    let path = dir.path().join("m.gguf");
    before.save_gguf(&path, Some(WeightDtype::F16)).unwrap();
    let mapped = TextModel::open(&path).unwrap();
    let folder = dir.path().join("folder");
    mapped.model.frozen_as(llm_model::WeightDtype::F32).unwrap().save(&folder).unwrap();
    mapped.tokenizer.save(&folder).unwrap();
    let folder = TextModel::open(&folder).unwrap();
    let options = GenerateOptions {
        max_new_tokens: 20,
        sampling: Sampling { temperature: 0., ..Sampling::default() },
        ..GenerateOptions::default()
    };
    let reply = |model: &Model| generate(model, &[vec![7, 3, 200]], &options, |_, _| true).unwrap();
    assert_eq!(reply(&mapped.model), reply(&folder.model));
    assert_eq!(folder.tokenizer.encode("the log").unwrap(), before.tokenizer.encode("the log").unwrap());
}

#[test]
fn candle_reads_the_same_values() {
    let dir = tempfile::tempdir().unwrap();
    let text_model = text_model(false);
    for (kind, _) in KINDS {
        let path = dir.path().join(format!("{kind:?}.gguf"));
        text_model.save_gguf(&path, Some(kind)).unwrap();
        let mut file = fs::File::open(&path).unwrap();
        let theirs = Content::read(&mut file).unwrap();
        let ours = Model::from_gguf(&GgufFile::open(&path).unwrap()).unwrap();
        assert_eq!(theirs.tensor_infos.len(), text_model.model.params().tensors().len());
        for (gguf, hf) in [("blk.1.ffn_down", "model.layers.1.mlp.down_proj"), ("output", "lm_head")] {
            let tensor = theirs.tensor(&mut file, &format!("{gguf}.weight"), &Device::Cpu).unwrap();
            let name = format!("{hf}.weight");
            let weight = ours.params().get(&name).unwrap().to_dense().unwrap();
            assert!(max_difference(&tensor.dequantize(&Device::Cpu).unwrap(), &weight) < 1e-6, "{kind:?} {name}");
        }
    }
}

/// The error for a valid file after `change`.
fn error_after(change: impl Fn(&mut Vec<u8>)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    text_model(true).save_gguf(&path, None).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(&path, bytes).unwrap();
    TextModel::open(&path).unwrap_err().to_string()
}

fn replace(bytes: &mut [u8], from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
}

#[test]
fn unknown_or_missing_parts_are_rejected_by_name() {
    for (change, expected) in [
        (("general.architecture", "general.architectura"), "\"general.architecture\" is missing"),
        (("llama.rope.freq_base", "llama.rope.freq_bass"), "\"llama.rope.freq_bass\""),
        (("llama.block_count", "llama.block_coun2"), "\"llama.block_count\" is missing"),
        (("blk.1.attn_q.weight", "blk.1.attn_z.weight"), "\"blk.1.attn_z.weight\" is not part of this model"),
        (("blk.1.attn_q.weight", "blk.7.attn_q.weight"), "tensor \"blk.1.attn_q.weight\" [96, 256] is missing"),
        (("llama.vocab_size\u{4}\0\0\0\u{1d}", "llama.vocab_size\u{4}\0\0\0\u{1e}"), "\"llama.vocab_size\""),
        (("gpt-2", "gpt-3"), "\"gpt-3\""),
        (("GGUF", "GGML"), "does not start with"),
    ] {
        let message = error_after(|bytes| replace(bytes, change.0, change.1));
        assert!(message.contains("m.gguf: ") || message.contains("GGUF file: "), "{message}");
        assert!(message.contains(expected), "{expected}: {message}");
    }
}

#[test]
fn an_existing_file_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    fs::write(&path, "mine").unwrap();
    let message = text_model(true).save_gguf(&path, None).unwrap_err().to_string();
    assert!(message.contains("m.gguf") && fs::read(&path).unwrap() == b"mine", "{message}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    let missing = TextModel::open(Path::new("/no/such.gguf")).unwrap_err().to_string();
    assert!(missing.contains("/no/such.gguf"), "{missing}");
}

#[test]
fn the_metadata_keys_match_llama_cpp() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    text_model(true).save_gguf(&path, Some(WeightDtype::Quantized(BlockFormat::Q8_0))).unwrap();
    let file = GgufFile::open(&path).unwrap();
    for (key, value) in [
        ("general.architecture", Value::Text("llama".to_owned())),
        ("general.file_type", Value::Unsigned(7)),
        ("llama.attention.head_count_kv", Value::Unsigned(2)),
        ("llama.attention.key_length", Value::Unsigned(16)),
        ("llama.attention.layer_norm_rms_epsilon", Value::Float(1e-5)),
        ("llama.rope.freq_base", Value::Float(5e5)),
        ("tokenizer.ggml.model", Value::Text("gpt2".to_owned())),
        ("tokenizer.ggml.eos_token_id", Value::Unsigned(5)),
    ] {
        assert_eq!(file.metadata().get(key), Some(&value), "{key}");
    }
}
