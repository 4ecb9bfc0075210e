//! What an answer must match: `response_format` and `structured_outputs`.

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

/// The form of an answer.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ResponseFormat {
    /// Any text.
    Text,
    /// A JSON object.
    JsonObject,
    /// A JSON value that is valid by a schema.
    JsonSchema { json_schema: NamedSchema },
}

/// A JSON schema with a name.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub(crate) struct NamedSchema {
    /// Of no effect.
    #[serde(default)]
    #[allow(dead_code, reason = "documented and checked, without effect")]
    pub(crate) name: String,
    /// The JSON schema.
    pub(crate) schema: Option<Value>,
}

/// A constraint of the answer; exactly one key.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub(crate) struct StructuredOutputs {
    /// A JSON schema.
    pub(crate) json: Option<Value>,
    /// A regular expression.
    pub(crate) regex: Option<String>,
    /// One of these texts.
    pub(crate) choice: Option<Vec<String>>,
    /// A grammar in Lark's notation.
    pub(crate) grammar: Option<String>,
}
