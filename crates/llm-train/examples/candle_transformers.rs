//! A Mistral of candle-transformers reads its weights through the checked reader of this workspace, gives the logits of our own
//! decoder, and is trained with our AdamW.
//!
//! ```sh
//! cargo run -p llm-train --example candle_transformers -- crates/llm-model/tests/golden/families/mistral
//! ```
//!
//! Several layers of candle-nn have no backward: the RMS norm inside the blocks, the rotary embedding and the softmax. The model
//! still learns, because the gradient also flows along the residual connections; query and key projections do not change.

use std::error::Error;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Activation, Optimizer, VarBuilder, loss};
use candle_transformers::models::mistral;
use llm_model::{Batch, Model, ModelConfig};
use llm_train::optim::{OptimizerConfig, VarOptimizer};

/// The configuration in the form of candle-transformers.
fn config(ours: &ModelConfig) -> mistral::Config {
    mistral::Config {
        vocab_size: ours.vocab_size,
        hidden_size: ours.hidden_size,
        intermediate_size: ours.intermediate_size,
        num_hidden_layers: ours.num_hidden_layers,
        num_attention_heads: ours.num_attention_heads,
        head_dim: Some(ours.head_dim),
        num_key_value_heads: ours.num_key_value_heads,
        hidden_act: Activation::Silu,
        max_position_embeddings: ours.max_position_embeddings,
        rms_norm_eps: ours.rms_norm_eps,
        rope_theta: ours.rope_theta,
        sliding_window: ours.sliding_window,
        use_flash_attn: false,
    }
}

/// The model of candle-transformers on the weights of `ours`: it shares trainable weights, and converts memory-mapped ones.
fn with_weights_of(ours: &Model) -> candle_core::Result<mistral::Model> {
    let weights = VarBuilder::from_backend(Box::new(ours.params().clone()), DType::F32, Device::Cpu);
    mistral::Model::new(&config(ours.config()), weights)
}

/// The largest difference of the logits of the last token.
fn largest_difference(ours: &Model) -> Result<f32, Box<dyn Error>> {
    let ids: Vec<u32> = (3..15).collect();
    let expected = ours.forward(&Batch::new(std::slice::from_ref(&ids))?)?.narrow(1, ids.len() - 1, 1)?; // (1, 1, vocab)
    let logits = with_weights_of(ours)?.forward(&Tensor::new(&ids[..], &Device::Cpu)?.unsqueeze(0)?, 0)?;
    Ok((logits - expected)?.abs()?.flatten_all()?.max(0)?.to_scalar()?)
}

/// Trains on the last token of two sequences; returns the loss of each step.
fn train(ours: &Model, steps: usize) -> Result<Vec<f32>, Box<dyn Error>> {
    let mut theirs = with_weights_of(ours)?;
    let input_ids = Tensor::new(&[[5u32, 6, 7, 8], [9, 10, 11, 12]], &Device::Cpu)?; // (2, 4)
    let labels = Tensor::new(&[9u32, 13], &Device::Cpu)?; // (2,)
    let settings = OptimizerConfig { learning_rate: 0.01, ..OptimizerConfig::default() };
    let mut optimizer = VarOptimizer::new(ours.params().vars().into_values().collect(), settings)?;
    let mut losses = Vec::new();
    for _ in 0..steps {
        theirs.clear_kv_cache();
        let logits = theirs.forward(&input_ids, 0)?.squeeze(1)?; // (2, vocab)
        let loss = loss::cross_entropy(&logits, &labels)?;
        optimizer.backward_step(&loss)?;
        losses.push(loss.to_scalar()?);
    }
    Ok(losses)
}

fn run(dir: &Path) -> Result<(f32, Vec<f32>), Box<dyn Error>> {
    let difference = largest_difference(&Model::open(dir)?)?;
    Ok((difference, train(&Model::load(dir)?.trainable()?, 20)?))
}

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args().nth(1).ok_or("give the folder of a Mistral model")?;
    let (difference, losses) = run(Path::new(&dir))?;
    println!("largest difference of the logits: {difference:e}");
    println!("loss: {losses:.3?}");
    Ok(())
}

#[test]
fn a_mistral_of_candle_has_our_logits_and_learns_with_our_optimizer() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../llm-model/tests/golden/families/mistral");
    let (difference, losses) = run(&golden).unwrap_or_else(|error| panic!("{error}"));
    // Sums in another order, in f32; the logits are of the size of 1.
    assert!(difference < 1e-4, "{difference}");
    assert!(losses[19] < 0.5 * losses[0], "{losses:?}");
}
