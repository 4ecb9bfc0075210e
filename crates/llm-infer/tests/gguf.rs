//! A model that goes to GGUF and back is the same model; a file that is none, or another's, is refused by name.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::fs;
use std::path::Path;

use candle_core::quantized::gguf_file::Content;
use candle_core::{D, Device, Tensor};
use llm_infer::{GenerateOptions, Sampling, TextModel, generate};
use llm_kernels::BlockFormat;
use llm_model::gguf::{GgufFile, TensorType, Value};
use llm_model::{Batch, Head, Model, ModelConfig};
use llm_tokenizer::{ChatMessage, TrainConfig, train_bpe};

/// Awkward on purpose: fewer key heads than heads, a head size of its own, more rows than tokens.
fn text_model(tied: bool) -> TextModel {
    let texts = ["the cat sat on the mat", "the dog sat on the log"];
    let tokenizer = train_bpe(&TrainConfig { vocab_size: 280, min_frequency: 2 }, texts.iter()).unwrap();
    let config = ModelConfig {
        vocab_size: 285,
        hidden_size: 256,
        intermediate_size: 96, // no multiple of 256
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

fn far(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(D::Minus1).unwrap().to_scalar().unwrap()
}

/// Every kind, with how far logits of about 6 at most may be off.
const KINDS: [(TensorType, f32); 7] = [
    (TensorType::F32, 1e-5),
    (TensorType::F16, 0.02),
    (TensorType::Bf16, 0.1),
    (TensorType::Quantized(BlockFormat::Q8_0), 0.3),
    (TensorType::Quantized(BlockFormat::Q6_K), 0.6),
    (TensorType::Quantized(BlockFormat::Q4_0), 4.),
    (TensorType::Quantized(BlockFormat::Q4_K), 4.),
];

#[test]
fn a_model_comes_back_with_its_shape_its_words_and_nearly_its_numbers() {
    let dir = tempfile::tempdir().unwrap();
    for tied in [true, false] {
        let before = text_model(tied);
        let said = logits(&before.model);
        for (kind, tolerance) in KINDS {
            let path = dir.path().join(format!("{tied}-{kind:?}.gguf"));
            before.save_gguf(&path, Some(kind)).unwrap();
            let after = TextModel::open(&path).unwrap();
            assert_eq!(after.model.config(), &ModelConfig { initializer_range: 0.02, ..before.model.config().clone() });
            let gap = far(&logits(&after.model), &said);
            assert!(gap <= tolerance && (gap > 0. || kind == TensorType::F32), "{kind:?}: {gap}");
            let chat = [ChatMessage::new("user", "the cat 🐈?")];
            assert_eq!(after.chat_ids(&chat).unwrap(), before.chat_ids(&chat).unwrap());
            assert_eq!(after.stop_ids(), before.stop_ids());

            // Written again as it is held, it is the same file.
            let again = dir.path().join("again.gguf");
            after.save_gguf(&again, None).unwrap();
            assert!(fs::read(&again).unwrap() == fs::read(&path).unwrap(), "{kind:?}");
            fs::remove_file(&again).unwrap();
        }
    }
}

#[test]
fn a_folder_made_of_a_gguf_file_says_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let before = text_model(false);
    let path = dir.path().join("m.gguf");
    before.save_gguf(&path, Some(TensorType::F16)).unwrap();
    let held = TextModel::open(&path).unwrap();
    let folder = dir.path().join("folder");
    held.model.frozen_as(llm_model::WeightFormat::F32).unwrap().save(&folder).unwrap();
    held.tokenizer.save(&folder).unwrap();
    let folder = TextModel::open(&folder).unwrap();
    let options = GenerateOptions {
        max_new_tokens: 20,
        sampling: Sampling { temperature: 0., ..Sampling::default() },
        ..GenerateOptions::default()
    };
    let reply = |model: &Model| generate(model, &[vec![7, 3, 200]], &options, |_, _| true).unwrap();
    assert_eq!(reply(&held.model), reply(&folder.model));
    assert_eq!(folder.tokenizer.encode("the log").unwrap(), before.tokenizer.encode("the log").unwrap());
}

#[test]
fn candle_reads_the_same_numbers() {
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
            let held = match ours.params().quantized().get(&name) {
                Some(blocks) => blocks.dequantize().unwrap(),
                None => ours.params().mapped()[&name].to_tensor().unwrap(),
            };
            assert!(far(&tensor.dequantize(&Device::Cpu).unwrap(), &held) < 1e-6, "{kind:?} {name}");
        }
    }
}

/// Ours, changed by hand on the way.
fn refused(change: impl Fn(&mut Vec<u8>)) -> String {
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
fn what_is_not_known_is_refused_by_name() {
    for (change, said) in [
        (("general.architecture", "general.architectura"), "\"general.architecture\" is missing"),
        (("llama.rope.freq_base", "llama.rope.freq_bass"), "\"llama.rope.freq_bass\""),
        (("llama.block_count", "llama.block_coun2"), "\"llama.block_count\" is missing"),
        (("blk.1.attn_q.weight", "blk.1.attn_z.weight"), "\"blk.1.attn_z.weight\" belongs to no part"),
        (("blk.1.attn_q.weight", "blk.7.attn_q.weight"), "tensor \"blk.1.attn_q.weight\" [96, 256] is missing"),
        (("llama.vocab_size\u{4}\0\0\0\u{1d}", "llama.vocab_size\u{4}\0\0\0\u{1e}"), "\"llama.vocab_size\""),
        (("gpt-2", "gpt-3"), "\"gpt-3\""),
        (("GGUF", "GGML"), "does not begin with"),
    ] {
        let message = refused(|bytes| replace(bytes, change.0, change.1));
        assert!(message.contains("m.gguf: ") || message.contains("GGUF file: "), "{message}");
        assert!(message.contains(said), "{said}: {message}");
    }
}

#[test]
fn a_file_that_is_there_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    fs::write(&path, "mine").unwrap();
    let message = text_model(true).save_gguf(&path, None).unwrap_err().to_string();
    assert!(message.contains("m.gguf") && fs::read(&path).unwrap() == b"mine", "{message}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing unfinished is left behind");
    let missing = TextModel::open(Path::new("/no/such.gguf")).unwrap_err().to_string();
    assert!(missing.contains("/no/such.gguf"), "{missing}");
}

#[test]
fn the_keys_are_those_of_llama_cpp() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    text_model(true).save_gguf(&path, Some(TensorType::Quantized(BlockFormat::Q8_0))).unwrap();
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
