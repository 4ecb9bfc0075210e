//! The response to a chat request, whole or in chunks.

use std::sync::Arc;

use llm_engine::{Event, FinishReason};

use super::logprobs::chat_token;
use super::reason;
use super::split::{Form, Piece, Splitter};
use crate::app::App;
use crate::error::{ApiError, Result};
use crate::prepare::Accepted;
use crate::prepare::chat::ChatForm;
use crate::wire::chat::{
    ChatChoice, ChatChunk, ChatResponse, ChunkChoice, Delta, FunctionCall, FunctionDelta, Message, ToolCall,
    ToolCallDelta,
};
use crate::wire::logprobs::{ChatLogprobs, ChatToken};
use crate::wire::usage::{StreamUsage, Usage};

/// Turns the events of a chat request into chunks.
pub(crate) struct ChatAnswer {
    app: Arc<App>,
    id: String,
    created: u64,
    model: String,
    seed: u64,
    form: ChatForm,
    answers: Vec<Answer>,
    usage: Usage,
}

/// One answer.
struct Answer {
    splitter: Splitter,
    /// Log-probabilities of tokens whose text was not sent.
    logprobs: Vec<ChatToken>,
}

impl ChatAnswer {
    pub(crate) fn new(app: Arc<App>, accepted: &Accepted, form: ChatForm) -> Self {
        let split = Form {
            thinks: app.thinks,
            in_reasoning: form.in_reasoning,
            callable: form.callable.clone(),
            tags: app.tool_tags,
        };
        let answer = || Answer { splitter: Splitter::new(split.clone()), logprobs: Vec::new() };
        Self {
            id: crate::ids::id("chatcmpl-"),
            created: crate::ids::now(),
            model: accepted.model.name.clone(),
            seed: accepted.seed,
            answers: (0..form.choices).map(|_| answer()).collect(),
            usage: Usage::default(),
            app,
            form,
        }
    }

    /// The first chunk of each answer: the role alone.
    pub(crate) fn open(&self) -> Vec<ChatChunk> {
        let role = || Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
        (0..self.form.choices).map(|index| self.chunk(index, role(), Vec::new(), None)).collect()
    }

    /// The chunks of an event.
    pub(crate) fn push(&mut self, event: Event) -> Result<Vec<ChatChunk>> {
        match event {
            Event::Prompt(_) => Ok(Vec::new()),
            Event::Text { choice, text, tokens } => {
                let answer = &mut self.answers[choice];
                if answer.splitter.in_reasoning() {
                    self.usage.completion_tokens_details.reasoning_tokens += tokens.len();
                }
                // The text of an end token is not part of the content.
                let shown = tokens.iter().filter(|token| !self.app.vocabulary.is_special(token.id));
                answer.logprobs.extend(shown.filter_map(|token| chat_token(&self.app.vocabulary, token)));
                let pieces = answer.splitter.push(&text);
                Ok(self.chunks(choice, pieces))
            }
            Event::End { choice, reason: why, tokens } => {
                self.app.metrics.observe_generation(tokens);
                let pieces = self.answers[choice].splitter.finish();
                let mut chunks = self.chunks(choice, pieces);
                let called = self.answers[choice].splitter.has_calls() && why == FinishReason::Stop;
                let left = std::mem::take(&mut self.answers[choice].logprobs);
                let why = if called { "tool_calls" } else { reason(why) };
                chunks.push(self.chunk(choice, Delta::default(), left, Some(why)));
                Ok(chunks)
            }
            Event::Done(used) => {
                self.usage.add(&used);
                self.seed = used.seed;
                Ok(Vec::new())
            }
            Event::Failed(error) => Err(ApiError::of(error, "messages")),
        }
    }

    /// The last chunk, with the usage, if it is asked for.
    pub(crate) fn close(&self) -> Option<ChatChunk> {
        let mut last = self.chunk(0, Delta::default(), Vec::new(), None);
        last.choices.clear();
        last.usage = Some(StreamUsage::Used(self.usage.clone()));
        last.seed = Some(self.seed);
        self.form.include_usage.then_some(last)
    }

    fn chunks(&mut self, choice: usize, pieces: Vec<Piece>) -> Vec<ChatChunk> {
        let mut chunks = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let logprobs = std::mem::take(&mut self.answers[choice].logprobs);
            chunks.push(self.chunk(choice, delta(piece), logprobs, None));
        }
        chunks
    }

    fn chunk(
        &self,
        index: usize,
        delta: Delta,
        logprobs: Vec<ChatToken>,
        finish_reason: Option<&'static str>,
    ) -> ChatChunk {
        let logprobs =
            (self.form.logprobs && !logprobs.is_empty()).then_some(ChatLogprobs { content: logprobs, refusal: None });
        ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk",
            created: self.created,
            model: self.model.clone(),
            system_fingerprint: self.app.fingerprint.clone(),
            choices: vec![ChunkChoice { index, delta, logprobs, finish_reason }],
            usage: self.form.include_usage.then_some(StreamUsage::Later),
            seed: None,
        }
    }

    /// The whole response, made of all chunks.
    pub(crate) fn response(self, chunks: Vec<ChatChunk>) -> ChatResponse {
        let mut choices: Vec<ChatChoice> = (0..self.form.choices).map(|index| self.empty(index)).collect();
        for part in chunks.into_iter().flat_map(|chunk| chunk.choices) {
            let choice = &mut choices[part.index];
            choice.message.add(part.delta);
            if let (Some(all), Some(new)) = (&mut choice.logprobs, part.logprobs) {
                all.content.extend(new.content);
            }
            choice.finish_reason = part.finish_reason.unwrap_or(choice.finish_reason);
        }
        ChatResponse {
            id: self.id,
            object: "chat.completion",
            created: self.created,
            model: self.model,
            system_fingerprint: self.app.fingerprint.clone(),
            choices,
            usage: self.usage,
            seed: self.seed,
        }
    }

    fn empty(&self, index: usize) -> ChatChoice {
        let message = Message {
            role: "assistant",
            content: None,
            refusal: None,
            reasoning: None,
            reasoning_content: None,
            tool_calls: Vec::new(),
        };
        ChatChoice { index, message, logprobs: self.form.logprobs.then(ChatLogprobs::default), finish_reason: "stop" }
    }
}

/// What is new in a message.
fn delta(piece: Piece) -> Delta {
    let call = |index, id: Option<String>, name: Option<String>, arguments| {
        let kind = id.as_ref().map(|_| "function");
        vec![ToolCallDelta { index, id, kind, function: FunctionDelta { name, arguments } }]
    };
    match piece {
        Piece::Content(text) => Delta { content: Some(text), ..Delta::default() },
        Piece::Reasoning(text) => {
            Delta { reasoning: Some(text.clone()), reasoning_content: Some(text), ..Delta::default() }
        }
        Piece::CallName(index, name) => {
            let tool_calls = call(index, Some(crate::ids::id("call_")), Some(name), String::new());
            Delta { tool_calls, ..Delta::default() }
        }
        Piece::CallArguments(index, text) => Delta { tool_calls: call(index, None, None, text), ..Delta::default() },
    }
}

impl Message {
    fn add(&mut self, delta: Delta) {
        let append = |all: &mut Option<String>, new: Option<String>| {
            if let Some(new) = new {
                all.get_or_insert_default().push_str(&new);
            }
        };
        append(&mut self.content, delta.content);
        append(&mut self.reasoning, delta.reasoning);
        append(&mut self.reasoning_content, delta.reasoning_content);
        for call in delta.tool_calls {
            if let (Some(id), Some(name)) = (call.id, call.function.name) {
                let function = FunctionCall { name, arguments: String::new() };
                self.tool_calls.push(ToolCall { id, kind: "function", function });
            }
            if let Some(last) = self.tool_calls.last_mut() {
                last.function.arguments.push_str(&call.function.arguments);
            }
        }
        if !self.tool_calls.is_empty() && self.content.as_ref().is_some_and(String::is_empty) {
            self.content = None;
        }
    }
}
