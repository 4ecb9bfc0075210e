//! The files of models: Hugging Face folders (`hf`, with `safetensors` and one module per family), GGUF, checkpoints of llama2.c and PEFT
//! adapters.
//!
//! These modules know models; models do not know their files, except for the names of a family ([`families`]).

pub mod families;
pub(crate) mod generation;
pub mod gguf;
pub(crate) mod hf;
pub(crate) mod json;
pub(crate) mod llama2c;
pub(crate) mod peft;
pub(crate) mod safetensors;
pub(crate) mod tensors;
