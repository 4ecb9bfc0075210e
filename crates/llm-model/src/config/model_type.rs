//! The model families.

use serde::{Deserialize, Serialize};
use serde_json::json;

/// The supported families, by `model_type` of transformers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each variant is the name of a family")]
pub enum ModelType {
    #[default]
    Llama,
    Mistral,
    Mixtral,
    Qwen2,
    Qwen3,
    Qwen3Moe,
    #[serde(rename = "smollm3")]
    SmolLm3,
    Olmo2,
    Phi3,
    Gemma2,
    Gemma3Text,
    Gpt2,
    GptNeox,
}

impl ModelType {
    /// All families.
    pub const ALL: [Self; 13] = [
        Self::Llama,
        Self::Mistral,
        Self::Mixtral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Qwen3Moe,
        Self::SmolLm3,
        Self::Olmo2,
        Self::Phi3,
        Self::Gemma2,
        Self::Gemma3Text,
        Self::Gpt2,
        Self::GptNeox,
    ];

    /// The `model_type` in `config.json`.
    pub fn name(self) -> String {
        json!(self).as_str().unwrap_or_default().to_owned()
    }
}
