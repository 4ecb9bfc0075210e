//! Turns files into batches.
//!
//! - [`world`]: the built-in world, a small closed English with the truth known everywhere;
//! - [`read_documents`], [`prepare`], [`TokenDataset`], [`Batches`]: text to token shards to rows of tokens;
//! - [`read_conversations`]: instruction data in the common forms;
//! - [`read_rankings`]: ranked answers;
//! - [`SplitKey`], [`split_by_prompt`], [`Duplicates`]: what a split keeps together, and what crosses one.
//!
//! ```
//! use llm_data::{Batches, TokenDataset, prepare, world::{Split, World, WorldConfig}};
//! use llm_tokenizer::{TrainConfig, train_bpe};
//!
//! let world = World::new(WorldConfig { corpus_bytes: 50_000, ..WorldConfig::default() });
//! let documents = world.corpus(Split::Train);
//! let config = TrainConfig { vocab_size: 400, ..TrainConfig::default() };
//! let tokenizer = train_bpe(&config, documents.iter().map(String::as_str))?;
//!
//! let dir = std::env::temp_dir().join(format!("llm-data-doc-example-{}", std::process::id()));
//! prepare(&tokenizer, &[("train", &documents)], &dir, &mut |_bytes| ())?;
//! let dataset = TokenDataset::open(&dir, "train")?;
//! let (inputs, targets) = Batches::new(&dataset, 4, 32, 42)?.batch(0)?;
//! assert_eq!((inputs.len(), &inputs[1..32]), (4 * 32, &targets[..31])); // each target is the next input
//! # std::fs::remove_dir_all(dir).ok();
//! # Ok::<(), llm_data::Error>(())
//! ```
//!
//! This crate knows nothing of models. Where to look next: the recipes of `llm-train` read all of this.

mod batches;
mod conversation;
mod error;
mod files;
mod messages;
mod ranking;
mod records;
mod shards;
mod split;
mod warnings;
pub mod world;

pub use batches::{Batches, eval_windows};
pub use conversation::{Conversation, Conversations, Message, Role, prompt_key, read_conversations, read_prompts};
pub use error::Error;
pub use files::{read_documents, read_jsonl, write_jsonl};
pub use ranking::{Ranking, Rankings, read_rankings};
pub use shards::{Manifest, SplitInfo, TokenDataset, prepare};
pub use split::{Duplicates, ItemKeys, Keyed, SplitKey, split_by_prompt};
pub use warnings::Warnings;

/// What every fallible function of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;
