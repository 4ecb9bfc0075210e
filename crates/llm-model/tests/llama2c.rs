//! Checkpoints of llama2.c: a model written here in its format is read with the same logits. `llm-infer` has a test with a published
//! checkpoint and the text that llama2.c generates with it.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::path::Path;

use candle_core::D;
use llm_model::{Batch, Head, Model, ModelConfig};

fn small(tied: bool) -> Model {
    let config = ModelConfig {
        vocab_size: 48,
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 0,
        max_position_embeddings: 64,
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        tie_word_embeddings: tied,
        initializer_range: 0.3,
        ..ModelConfig::default()
    };
    Model::init(config.validated("test").unwrap(), Head::LanguageModel, 1).unwrap()
}

fn numbers(model: &Model, name: &str) -> Vec<f32> {
    model.params().get(name).unwrap().to_dense().unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The file that `export.py --version 0` writes: row 2i of a query or key head is row i of ours, row 2i + 1 is row i + d/2.
fn write(model: &Model, path: &Path) -> Vec<u8> {
    let config = model.config();
    let head = config.head_dim;
    let sign = if config.tie_word_embeddings { 1 } else { -1 };
    let sizes = [
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
    ];
    let mut bytes: Vec<u8> = sizes.iter().flat_map(|size| (*size as i32).to_le_bytes()).collect();
    bytes.extend((sign * config.vocab_size as i32).to_le_bytes());
    bytes.extend((config.max_position_embeddings as i32).to_le_bytes());
    let mut put = |numbers: Vec<f32>| bytes.extend(numbers.into_iter().flat_map(f32::to_le_bytes));
    put(numbers(model, "model.embed_tokens.weight"));
    for kind in [
        "input_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "post_attention_layernorm",
        "mlp.gate_proj",
        "mlp.down_proj",
        "mlp.up_proj",
    ] {
        for layer in 0..config.num_hidden_layers {
            let ours = numbers(model, &format!("model.layers.{layer}.{kind}.weight"));
            if !kind.ends_with("q_proj") && !kind.ends_with("k_proj") {
                put(ours);
                continue;
            }
            let rows: Vec<&[f32]> = ours.chunks(config.hidden_size).collect();
            for head in rows.chunks(head) {
                for i in 0..head.len() / 2 {
                    put(head[i].to_vec());
                    put(head[i + head.len() / 2].to_vec());
                }
            }
        }
    }
    put(numbers(model, "model.norm.weight"));
    put(vec![9.; config.max_position_embeddings * head]); // not used
    if !config.tie_word_embeddings {
        put(numbers(model, "lm_head.weight"));
    }
    std::fs::write(path, &bytes).unwrap();
    bytes
}

#[test]
fn a_checkpoint_of_llama2c_has_the_logits_of_the_model() {
    for tied in [false, true] {
        let model = small(tied);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.bin");
        write(&model, &path);
        let read = Model::from_llama2c(&path).unwrap();
        let batch = Batch::new(&[(0..20).map(|i| i * 3 % model.config().vocab_size as u32).collect()]).unwrap();
        let (ours, theirs) = (read.forward(&batch).unwrap(), model.forward(&batch).unwrap());
        let gap = (ours - theirs).unwrap().abs().unwrap().flatten_all().unwrap().max(D::Minus1).unwrap();
        assert!(gap.to_scalar::<f32>().unwrap() < 1e-5, "{tied}");
        assert_eq!(read.config().eos_token_id, Some(1));
    }
}

#[test]
fn damaged_checkpoints_are_errors_that_name_the_file() {
    let model = small(true);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.bin");
    let good = write(&model, &path);
    let mut later = good.clone();
    later[..4].copy_from_slice(&0x616b_3432u32.to_le_bytes());
    let mut large = good.clone();
    large[20..24].copy_from_slice(&i32::MAX.to_le_bytes());
    for (bytes, part) in [
        (&good[..good.len() - 1], "truncated"),
        (&[&good[..], &[0]].concat()[..], "1 bytes after"),
        (&good[..20], "no header"),
        (&later[..], "--version 0"),
        (&large[..], "2147483647 x 16"),
        (&[0; 28][..], "vocab_size"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = Model::from_llama2c(&path).unwrap_err().to_string();
        assert!(error.contains("model.bin") && error.contains(part), "{part}: {error}");
    }
}
