//! Low-rank adapters: a frozen matrix `W` becomes `W + s·BA` with small trainable matrices `A` and `B` (LoRA, Hu et al.
//! 2021, arXiv 2106.09685). rsLoRA scales with `s = alpha / sqrt(r)` (Kalajdzievski 2023, arXiv 2312.03732). DoRA also
//! trains the magnitude of each row of the sum (Liu et al. 2024, arXiv 2402.09353). With a quantised `W` this is QLoRA
//! (Dettmers et al. 2023, arXiv 2305.14314).

//!
//! `config` and `tokens` say what is adapted, `modules` is what transformers calls the parts of a model, `layout` finds the tensors
//! of an adapter, `adapter` is its weights, `layer` and `token_rows` are its part of a forward pass, `sum` adds adapters.

mod adapter;
mod config;
mod init;
mod layer;
mod layout;
mod modules;
mod resolve;
mod sum;
mod token_rows;
mod tokens;

pub(crate) use adapter::Adapter;
pub use config::LoraConfig;
pub(crate) use layer::{EmbeddingLora, Lora};
pub(crate) use layout::{Layout, TargetKind};
pub(crate) use token_rows::{TokenRows, effective_rows};
pub use tokens::TokenIndices;
pub(crate) use tokens::{EMBEDDING, OUTPUT};
