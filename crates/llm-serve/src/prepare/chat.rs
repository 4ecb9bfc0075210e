//! Chat requests.

use llm_tokenizer::{ChatMessage, Conversation};
use serde_json::{Map, Value};

use super::output::constraint;
use super::tools::{Calls, calls};
use super::{Accepted, Settings, fit, in_range, stops};
use crate::app::App;
use crate::error::{ApiError, Result};
use crate::wire::chat::{ChatRequest, Tool};
use crate::wire::json::parse;
use crate::wire::sampling::SamplingFields;

/// What the answer to a chat request looks like.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools, reason = "each is a key of the request")]
pub(crate) struct ChatForm {
    pub(crate) choices: usize,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) logprobs: bool,
    /// The prompt ends within the reasoning.
    pub(crate) in_reasoning: bool,
    /// The names of the functions that the answer may call.
    pub(crate) callable: Vec<String>,
}

/// A conversation for the template, and how its text ends.
pub(crate) struct Prompt {
    pub(crate) conversation: Conversation,
    pub(crate) generation_prompt: bool,
    pub(crate) open: bool,
}

/// Reads a chat request and submits it.
pub(crate) fn accept(app: &App, body: &[u8]) -> Result<(Accepted, ChatForm)> {
    let request: ChatRequest = parse(body)?;
    let sampling: SamplingFields = parse(body)?;
    let model = app.select(request.model.as_deref())?;
    let choices = in_range("n", request.n.unwrap_or(1), 1..=128)?;
    let logprobs = request.logprobs.unwrap_or(false);
    let top = in_range("top_logprobs", request.top_logprobs.unwrap_or(0), 0..=20)?;
    if top > 0 && !logprobs {
        return Err(ApiError::invalid("top_logprobs", "\"top_logprobs\" needs \"logprobs\": true"));
    }
    let tools = request.tools.unwrap_or_default();
    let parallel = request.parallel_tool_calls.unwrap_or(true);
    let calls = calls(&tools, request.tool_choice.as_ref(), parallel, app.tool_tags)?;
    let mut constraint = constraint(request.response_format, request.structured_outputs)?;
    if let Calls::Forced(calls) = &calls {
        if constraint.is_some() {
            let message =
                "the answer must be a call and match \"response_format\"; set \"tool_choice\" to \"auto\" or \"none\"";
            return Err(ApiError::invalid("tool_choice", message));
        }
        constraint = Some(calls.clone());
    }
    let shown: &[Tool] = if calls == Calls::None { &[] } else { &tools };
    let prompt = Prompt {
        conversation: conversation(request.messages, tool_values(shown)?, request.chat_template_kwargs)?,
        generation_prompt: request.add_generation_prompt.unwrap_or(request.continue_final_message != Some(true)),
        open: request.continue_final_message.unwrap_or(false),
    };
    let (ids, text) = encode(app, &prompt)?;
    let max_tokens = match request.max_completion_tokens.or(request.max_tokens) {
        Some(0) => return Err(ApiError::invalid("max_tokens", "\"max_tokens\" is 0; it must be 1 or more")),
        given => given.unwrap_or(usize::MAX),
    };
    let ids = fit(app, ids, request.truncate_prompt_tokens, "messages", 1)?;
    let text_model = app.engine.text_model();
    let settings = Settings {
        model: model.clone(),
        choices,
        stop: stops(request.stop, app)?,
        stop_ids: sampling.stop_ids(|| text_model.stop_ids()),
        sampling: sampling.sampling(text_model.model.generation())?,
        logprobs: logprobs.then_some(top),
        prompt_logprobs: None,
        constraint,
        priority: request.priority.unwrap_or(0),
        key: request.user,
        cache_salt: request.cache_salt,
    };
    let seed = settings.sampling.seed.unwrap_or_default();
    let generation = app.submit(settings.request(app, ids, max_tokens))?;
    let form = ChatForm {
        choices,
        stream: request.stream.unwrap_or(false),
        include_usage: request.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
        logprobs,
        in_reasoning: app.thinks && text.trim_end().ends_with("<think>"),
        callable: shown.iter().map(|tool| tool.function.name.clone()).collect(),
    };
    Ok((Accepted { model, generations: vec![generation], seed }, form))
}

/// The tools as the chat template gets them.
fn tool_values(tools: &[Tool]) -> Result<Vec<Value>> {
    tools.iter().map(|tool| serde_json::to_value(tool).map_err(ApiError::internal)).collect()
}

/// The token ids and the text of a conversation.
pub(crate) fn encode(app: &App, prompt: &Prompt) -> Result<(Vec<u32>, String)> {
    if prompt.open && prompt.generation_prompt {
        let message = "\"continue_final_message\" and \"add_generation_prompt\" exclude each other; set one to false";
        return Err(ApiError::invalid("continue_final_message", message));
    }
    let (tokenizer, conversation) = (app.engine.tokenizer(), &prompt.conversation);
    let encoded = match prompt.open {
        true => tokenizer
            .encode_open_chat(conversation)
            .and_then(|ids| Ok((ids, tokenizer.render_open_chat(conversation)?))),
        false => {
            let end = prompt.generation_prompt;
            tokenizer
                .encode_chat(conversation, end)
                .and_then(|ids| Ok((ids, tokenizer.render_chat(conversation, end)?)))
        }
    };
    encoded.map_err(|error| ApiError::of(error, "messages"))
}

/// The conversation of a request as the chat template gets it.
pub(crate) fn conversation(
    messages: Vec<ChatMessage>,
    tools: Vec<Value>,
    variables: Option<Map<String, Value>>,
) -> Result<Conversation> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "\"messages\" is empty; give at least one message"));
    }
    let messages = messages.into_iter().enumerate().map(|(index, message)| normalized(index, message));
    Ok(Conversation {
        messages: messages.collect::<Result<_>>()?,
        tools: Some(tools).filter(|tools| !tools.is_empty()),
        documents: None,
        variables: variables.unwrap_or_default(),
    })
}

/// A message with its parts joined, the role `developer` as `system`, and the arguments of its calls as objects, which templates write
/// with `tojson`.
fn normalized(index: usize, message: ChatMessage) -> Result<ChatMessage> {
    let mut fields = Map::from(message);
    if fields.get("role").and_then(Value::as_str) == Some("developer") {
        fields.insert("role".to_owned(), "system".into());
    }
    match fields.get_mut("content") {
        Some(Value::Array(parts)) => {
            let texts = parts.iter().enumerate().map(|(part, value)| {
                match (value, value.get("type").and_then(Value::as_str)) {
                    (Value::String(text), _) => Ok(text.as_str()),
                    (_, Some("text" | "input_text" | "refusal")) if value.get("text").is_some_and(Value::is_string) => {
                        Ok(value["text"].as_str().unwrap_or_default())
                    }
                    (_, kind) => {
                        let kind = kind.map_or_else(|| "of no type".to_owned(), |kind| format!("of type {kind:?}"));
                        let message =
                            format!("this part is {kind}; only {{\"type\": \"text\", \"text\": …}} is supported");
                        Err(ApiError::invalid(format!("messages[{index}].content[{part}]"), message))
                    }
                }
            });
            let text = texts.collect::<Result<String>>()?;
            fields.insert("content".to_owned(), text.into());
        }
        Some(Value::Null) | None => {
            fields.insert("content".to_owned(), "".into());
        }
        Some(_) => (),
    }
    if let Some(Value::Array(calls)) = fields.get_mut("tool_calls") {
        for call in calls {
            if let Some(arguments) = call.pointer_mut("/function/arguments")
                && let Some(text) = arguments.as_str()
                && let Ok(object @ Value::Object(_)) = serde_json::from_str(text)
            {
                *arguments = object;
            }
        }
    }
    ChatMessage::from_fields(fields).map_err(|error| ApiError::of(error, &format!("messages[{index}]")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(value: Value) -> Result<Value> {
        let message = serde_json::from_value(value).unwrap();
        normalized(3, message).map(|message| Value::Object(message.into()))
    }

    #[test]
    fn parts_are_joined_and_arguments_are_objects() {
        let parts =
            json!({"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": " b"}]});
        assert_eq!(message(parts).unwrap(), json!({"role": "system", "content": "a b"}));
        let call = json!({"role": "assistant", "content": null, "tool_calls":
            [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"b\": 1, \"a\": 2}"}}]});
        let read = message(call).unwrap();
        assert_eq!(
            (&read["content"], &read["tool_calls"][0]["function"]["arguments"]),
            (&json!(""), &json!({"b": 1, "a": 2}))
        );
    }

    #[test]
    fn an_image_is_an_error_that_names_the_part() {
        let image =
            json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]});
        let error = message(image).unwrap_err();
        assert_eq!((error.status.as_u16(), &error.body()["error"]["param"]), (400, &json!("messages[3].content[1]")));
        assert!(conversation(Vec::new(), Vec::new(), None).is_err());
    }
}
