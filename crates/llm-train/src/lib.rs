//! Every way in which a model learns, and the recipes that chain them.
//!
//! - [`loss`]: cross-entropy, KL divergence, mean squared error, and the losses of ranked answers;
//! - [`optim`]: AdamW, learning rates over time, a [`optim::Learner`];
//! - [`rl`], [`rollout`]: the formulas of PPO and the replies that they are applied to;
//! - [`best_of`]: best-of-n sampling, what PPO is measured against;
//! - [`recipes`]: pre-training, fine-tuning, reward model, PPO, distillation, and a whole life;
//! - [`fitting`]: whether model, tokenizer and data belong together;
//! - [`run`]: what a run leaves on disk, and how it goes on after an interruption;
//! - [`eval`]: what a model can do, in figures; [`stats`]: their intervals; [`baselines`]: what predictors without
//!   the ability score;
//! - [`plot`]: curves as SVG;
//! - [`mod@bench`]: what a training step costs; [`params`]: what it would.
//!
//! ```
//! use llm_data::{prepare, world::{Split, World, WorldConfig}};
//! use llm_model::{Model, ModelConfig};
//! use llm_tokenizer::{TrainConfig, train_bpe};
//! use llm_train::recipes::{PretrainInputs, PretrainRecipe, pretrain};
//! use llm_train::run::{NEVER, RunOptions};
//!
//! let dir = std::env::temp_dir().join(format!("llm-train-doc-example-{}", std::process::id()));
//! let world = World::new(WorldConfig { corpus_bytes: 20_000, ..WorldConfig::default() });
//! let (train, held_out) = (world.corpus(Split::Train), world.corpus(Split::HeldOut));
//! let config = TrainConfig { vocab_size: 400, ..TrainConfig::default() };
//! let tokenizer = train_bpe(&config, train.iter().map(String::as_str))?;
//! tokenizer.save(&dir.join("tokenizer"))?;
//! prepare(&tokenizer, &[("train", &train), ("held_out", &held_out)], &dir.join("shards"), &mut |_| ())?;
//!
//! let model = ModelConfig {
//!     hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1,
//!     ..ModelConfig::default()
//! };
//! let recipe = PretrainRecipe { steps: 5, batch_size: 2, seq_len: 32, model, ..PretrainRecipe::default() };
//! let inputs = PretrainInputs { tokenizer: &dir.join("tokenizer"), data: &dir.join("shards") };
//! pretrain(&recipe, inputs, &dir.join("run"), RunOptions { resume: false, observer: &mut |_| (), stop: &NEVER })?;
//! assert_eq!(Model::load(&dir.join("run"))?.config().hidden_size, 32);
//! # std::fs::remove_dir_all(dir).ok();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Where to look next: `llm-infer` talks with what comes out; `docs/guide.md` walks through the commands.

pub mod baselines;
pub mod bench;
pub mod best_of;
#[cfg(feature = "cli")]
pub mod cli;
mod error;
pub mod eval;
pub mod examples;
pub mod fitting;
mod limits;
pub mod loss;
pub mod optim;
pub mod params;
pub mod plot;
mod recipe;
pub mod recipes;
pub mod rl;
pub mod rollout;
mod routing;
pub mod run;
mod splits;
pub mod stats;

pub use error::Error;
pub use recipe::{Recipe, read as read_recipe};

/// What every fallible function of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;
