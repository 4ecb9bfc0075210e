//! Training of language models: losses, optimizer, recipes and evaluation.
//!
//! - [`loss`]: all losses: cross-entropy, KL divergence, mean squared error, rankings, PPO;
//! - [`optim`]: AdamW, learning rate schedules, [`optim::Learner`];
//! - [`rl`]: the formulas of PPO, GRPO and RLOO; [`rollout`]: sampled replies with their log-probabilities and values;
//! - [`rewards`]: what replies are worth: reward models, functions, programs, servers and rules, as a weighted sum;
//! - [`best_of`]: best-of-n sampling, the baseline of PPO;
//! - [`recipes`]: pre-training, fine-tuning, reward model, PPO, GRPO, distillation, and the pipeline of all of them;
//! - [`compare`]: the win rate of two models, by a reward or by people;
//! - [`compat`]: checks that model, tokenizer and data match;
//! - [`run`]: the folder of a run, checkpoints and resuming;
//! - [`depth`]: the settings of pre-training from one number; [`recipes::scaling()`]: a series of models and its scaling law;
//! - [`eval`]: the steps after which a run is evaluated;
//! - [`examples`], [`batches`]: conversations in token ids, and their batches;
//! - [`plot`]: curves as SVG;
//! - [`mod@bench`]: measured cost of a training step; [`params`]: estimated cost of a model.
//!
//! ```
//! use llm_data::prepare;
//! use llm_model::{Model, ModelConfig};
//! use llm_synthetic::{Split, World, WorldConfig};
//! use llm_tokenizer::{TrainConfig, train_bpe};
//! use llm_train::recipes::{PretrainInputs, PretrainRecipe, pretrain};
//! use llm_train::run::RunOptions;
//!
//! let dir = std::env::temp_dir().join(format!("llm-train-doc-example-{}", std::process::id()));
//! let world = World::new(WorldConfig { corpus_bytes: 20_000, ..WorldConfig::default() });
//! let (train, validation) = (world.corpus(Split::Train), world.corpus(Split::HeldOut));
//! let config = TrainConfig { vocab_size: 400, ..TrainConfig::default() };
//! let tokenizer = train_bpe(&config, train.iter().map(String::as_str))?;
//! tokenizer.save(&dir.join("tokenizer"))?;
//! prepare(&tokenizer, &[("train", &train), ("held_out", &validation)], &dir.join("shards"), &mut |_| ())?;
//!
//! let model = ModelConfig {
//!     hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1,
//!     ..ModelConfig::default()
//! };
//! let recipe = PretrainRecipe { steps: 5, batch_size: 2, seq_len: 32, model, ..PretrainRecipe::default() };
//! let inputs = PretrainInputs { model: None, tokenizer: dir.join("tokenizer"), data: vec![dir.join("shards")] };
//! let outcome = pretrain(&recipe, &inputs, &dir.join("run"), RunOptions::default())?;
//! assert!(outcome.metrics["eval_loss"] < 7.);
//! assert_eq!(Model::load(&outcome.dir)?.config().hidden_size, 32);
//! # std::fs::remove_dir_all(dir).ok();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A debug build of a program that uses this crate needs `[profile.dev.package."*"]` with `opt-level = 3` in its `Cargo.toml`:
//! Cargo ignores the profiles of a dependency, and tensor code without optimisation is too slow to train models.
//!
//! Where to look next: `llm-infer` runs the trained models; `docs/guide.md` shows all commands.
//!
//! `examples/pretrain.rs` is an example to copy: from a corpus to generated text.

mod adapters;
pub mod batches;
pub mod bench;
pub mod best_of;
#[cfg(feature = "cli")]
pub mod cli;
pub mod compare;
pub mod compat;
mod completions;
pub mod data;
pub mod depth;
mod error;
pub mod eval;
pub mod examples;
pub mod feedback;
mod limits;
mod load;
pub mod loss;
pub mod optim;
pub mod params;
pub mod plot;
pub mod preview;
mod prompts;
mod recipe;
pub mod recipes;
pub mod rewards;
pub mod rl;
pub mod rollout;
mod routing;
pub mod rows;
pub mod run;
mod splits;
mod teacher_logits;

pub use error::Error;
pub use recipe::{Recipe, read as read_recipe};

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
