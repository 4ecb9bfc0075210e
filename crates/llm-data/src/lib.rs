//! Datasets: readers, token shards, batches and splits.
//!
//! - [`for_each_document`], [`read_documents`]: documents of text, Markdown, HTML, JSON, CSV and Parquet files;
//! - [`clean`]: steps that change or remove documents of a corpus;
//! - [`prepare`], [`TokenDataset`], [`Batches`]: token shards, batches for pre-training;
//! - [`ShardWriter`], [`for_each_token_document`], [`export_shards`]: shards as a stream, from and to the files of llm.c and Megatron-LM;
//! - [`read_training_rows`], [`read_prompts`]: instruction data in the common formats, with [`ReadOptions`];
//! - [`read_rankings`]: rankings of answers;
//! - [`SplitKey`], [`split_by_prompt`], [`Duplicates`]: splits by prompt, and duplicates within and across them.
//!
//! ```
//! use llm_data::{Batches, TokenDataset, prepare};
//! use llm_tokenizer::{TrainConfig, train_bpe};
//!
//! let documents: Vec<String> = (0..500).map(|i| format!("{i} apples and {} pears are {} fruits.", i + 1, 2 * i + 1)).collect();
//! let config = TrainConfig { vocab_size: 400, ..TrainConfig::default() };
//! let tokenizer = train_bpe(&config, documents.iter().map(String::as_str))?;
//!
//! let dir = std::env::temp_dir().join(format!("llm-data-doc-example-{}", std::process::id()));
//! prepare(&tokenizer, &[("train", &documents)], &dir, &mut |_bytes| ())?;
//! let dataset = TokenDataset::open(&dir, "train")?;
//! let batch = Batches::new(&dataset, 4, 32, 42)?.batch(0)?;
//! assert_eq!((batch.inputs.len(), &batch.inputs[1..32]), (4 * 32, &batch.targets[..31])); // each target is the next token
//! # std::fs::remove_dir_all(dir).ok();
//! # Ok::<(), llm_data::Error>(())
//! ```
//!
//! This crate does not depend on the model crates. Where to look next: the recipes of `llm-train` use these datasets.
//!
//! A debug build of a program that uses this crate needs `[profile.dev.package."*"]` with `opt-level = 3` in its `Cargo.toml`:
//! Cargo ignores the profiles of a dependency, and tokenization without optimisation is slow.
//!
//! `examples/read_data.rs` is an example to copy: data formats and a split by prompt.

mod batches;
pub mod clean;
mod contamination;
mod conversation;
mod documents;
mod error;
mod files;
mod messages;
mod mixture;
mod overlap;
mod packing;
mod ranking;
mod records;
mod rows;
mod shards;
mod source;
mod split;
mod token_rows;
mod value;
mod warnings;

pub use batches::{Batches, eval_windows};
pub use contamination::Contamination;
pub use conversation::{TrainingRow, TrainingRows, prompt_key, read_prompts, read_training_rows};
pub use documents::{Document, DocumentOptions, Markup, Problem, ReadReport, document_files, for_each_document};
pub use error::{Error, Place};
pub use files::{read_documents, read_jsonl, write_jsonl};
pub use llm_tokenizer::{ChatMessage, Conversation};
pub use overlap::NGrams;
pub use packing::best_fit_decreasing;
pub use ranking::{LabelledAnswer, LabelledAnswers, Ranking, Rankings, read_labelled_answers, read_rankings};
pub use rows::ReadOptions;
pub use shards::{
    ExportFormat, FileInfo, Manifest, ShardWriter, SplitInfo, TokenDataset, TokenDtype, export_shards,
    for_each_token_document, is_token_file, prepare,
};
pub use split::{Duplicates, ItemKeys, Keyed, SplitKey, split_by_prompt};
pub use token_rows::{Packing, TokenBatch};
pub use warnings::{Broken, Warnings};

/// The result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
