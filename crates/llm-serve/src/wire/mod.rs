//! The JSON of requests and responses, as the OpenAI API defines it.
//!
//! Unknown keys of a request are ignored. A key that is null is as if it was missing.

pub(crate) mod chat;
pub(crate) mod completion;
pub(crate) mod embedding;
pub(crate) mod json;
pub(crate) mod logprobs;
pub(crate) mod models;
pub(crate) mod output;
pub(crate) mod sampling;
pub(crate) mod score;
pub(crate) mod text;
pub(crate) mod usage;
