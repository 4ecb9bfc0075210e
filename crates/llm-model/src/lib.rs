//! Transformer models: configuration, decoder, heads and files.
//!
//! One decoder implements every model family; the differences between families are data in [`ModelConfig`]. A [`Model`]
//! is a decoder with a [`Head`]: next-token logits (`…ForCausalLM`), one score for a sequence
//! (`…ForSequenceClassification`, the reward model) or one value for each token (`…ForTokenClassification`, the critic).
//! Model folders have the layout of Hugging Face.
//!
//! ```
//! use llm_model::{Batch, Head, Model, ModelConfig};
//!
//! let config = ModelConfig { vocab_size: 100, hidden_size: 48, num_hidden_layers: 2, ..ModelConfig::default() };
//! let model = Model::init(config, Head::LanguageModel, 42)?;
//! let logits = model.forward(&Batch::new(&[vec![1, 2, 3]])?)?;
//! assert_eq!(logits.dims(), [1, 3, 100]); // (batch, seq, vocab)
//!
//! let dir = std::env::temp_dir().join("llm-model-doc-example");
//! model.save(&dir)?;
//! assert_eq!(Model::load(&dir)?.config(), model.config());
//! # std::fs::remove_dir_all(dir).ok();
//! # Ok::<(), llm_model::Error>(())
//! ```
//!
//! A debug build of a program that uses this crate needs `[profile.dev.package."*"]` with `opt-level = 3` in its `Cargo.toml`:
//! Cargo ignores the profiles of a dependency, and tensor code without optimisation is too slow to run models.
//!
//! This crate does not know about text, tokenizers or training. See also: `llm-infer` generates text with a model,
//! `llm-train` trains it.
//!
//! `examples/custom_model.rs` is an example to copy: a model from its configuration to a Hugging Face folder.

mod adapters;
mod batch;
mod cache;
mod config;
pub mod cost;
mod count;
mod decoder;
mod device;
mod embedding;
mod error;
mod experts;
mod formats;
mod head;
mod inspect;
mod linear;
mod lora;
mod model;
mod norm;
mod pages;
mod params;
pub mod presets;
mod rotary;
mod shapes;
mod untrained;
mod var_builder;
mod weight;
mod weight_path;

pub use batch::Batch;
pub use cache::KvCache;
pub use config::{
    Activation, AttentionBias, ExpertsConfig, LayerType, ModelConfig, ModelType, NormKind, NormPlacement, QkNorm,
    RopeScaling,
};
pub use count::ParamCount;
pub use error::Error;
pub use experts::Routing;
pub use formats::generation::GenerationConfig;
pub use formats::hf::read_config;
pub use formats::json::write_atomic;
pub use formats::safetensors::{read_safetensors, write_safetensors};
pub use formats::{families, gguf};
pub use head::Head;
pub use inspect::{Ablation, AblationKind, HeadAttention};
pub use llm_files::{BlockFormat, WeightDtype};
pub use lora::{LoraConfig, TokenIndices};
pub use model::{HiddenLayers, Model, Teacher};
pub use pages::{KvDtype, KvPool, PagedRows};
pub use params::Params;
pub use shapes::{Projection, Role, TensorSpec};
pub use weight::Weight;

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, Error>;
