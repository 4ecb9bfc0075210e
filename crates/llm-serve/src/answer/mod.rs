//! From the events of the engine to responses.

pub(crate) mod call;
pub(crate) mod chat;
pub(crate) mod completion;
pub(crate) mod logprobs;
pub(crate) mod running;
pub(crate) mod split;
pub(crate) mod sse;

use llm_engine::FinishReason;

/// The word for the end of an answer.
pub(crate) fn reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}
