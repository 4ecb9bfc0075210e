//! Conversations and texts to train on, and prompts: the readers of instruction datasets.

use std::path::Path;

use llm_tokenizer::{ChatMessage, Conversation};
use serde_json::{Map, Value};

use crate::messages::messages;
use crate::rows::{IgnoredKeys, ReadOptions, RowError, for_each_row, is_set, objects, refuse_columns};
use crate::split::{Duplicates, ItemKeys, Keyed, SplitKey};
use crate::value::{described, kind, text_of};
use crate::{Error, Result, Warnings};

/// An item of fine-tuning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrainingRow {
    /// A conversation; the assistant's messages are trained on.
    Conversation(Conversation),
    /// A text without a chat template; all of it is trained on.
    Text(String),
}

/// The split key of a prompt: a hash of the texts of all its messages.
pub fn prompt_key(prompt: &[ChatMessage]) -> SplitKey {
    let texts: Vec<_> = prompt.iter().map(ChatMessage::text).collect();
    SplitKey::of(texts.iter().map(AsRef::as_ref))
}

/// The text of all messages but system messages.
pub(crate) fn spoken(messages: &[ChatMessage]) -> String {
    let texts = messages.iter().filter(|m| m.role() != "system").map(ChatMessage::text);
    texts.collect::<Vec<_>>().join("\n")
}

/// The keys of a message besides its role and content, as JSON; empty if there are none.
fn other_fields(message: &ChatMessage) -> String {
    let others = message.fields().iter().filter(|(key, _)| !["role", "content"].contains(&key.as_str()));
    others.map(|(key, value)| format!("{key} {value}")).collect()
}

impl Keyed for Conversation {
    /// The prompt is the messages before the first answer, because all later messages depend on them. If these have no text,
    /// the prompt is the whole conversation.
    fn keys(&self) -> ItemKeys {
        let all: Vec<_> = self.messages.iter().flat_map(|m| [m.text(), other_fields(m).into()]).collect();
        let whole = SplitKey::of(all.iter().map(AsRef::as_ref));
        let before: Vec<_> =
            self.messages.iter().take_while(|m| m.role() != "assistant").map(ChatMessage::text).collect();
        let before: Vec<&str> =
            before.iter().map(AsRef::as_ref).filter(|text: &&str| !text.trim().is_empty()).collect();
        ItemKeys { prompt: if before.is_empty() { whole } else { SplitKey::of(before) }, whole }
    }

    fn texts(&self) -> Vec<String> {
        vec![spoken(&self.messages)]
    }
}

impl Keyed for TrainingRow {
    /// A text is its own prompt.
    fn keys(&self) -> ItemKeys {
        match self {
            Self::Conversation(conversation) => conversation.keys(),
            Self::Text(text) => SplitKey::of([text.as_str()]).into(),
        }
    }

    fn texts(&self) -> Vec<String> {
        match self {
            Self::Conversation(conversation) => conversation.texts(),
            Self::Text(text) => vec![text.clone()],
        }
    }
}

/// The rows of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainingRows {
    /// The rows, in the order of the file.
    pub rows: Vec<TrainingRow>,
    /// Problems that are not errors.
    pub warnings: Warnings,
}

/// Reads rows for fine-tuning from a file or a folder of files: JSONL, a JSON array, CSV or Parquet, also compressed as `.gz` or
/// `.zst`. Supported forms of a row:
///
/// - `{"messages": [{"role", "content"}, …]}`, or a bare list of messages;
/// - `{"conversations": [{"from", "value"}, …]}` (ShareGPT);
/// - `{"prompt", "completion"}` (TRL), both texts or lists of messages; only the completion is trained on;
/// - `{"question", "answer"}` (GSM8K), or `{"instruction", "input", "output"}` (Alpaca), with an optional `history` (earlier turns
///   as pairs of texts);
/// - `{"text"}`: a text that is trained on as a whole, without a chat template.
///
/// All but the last may have `system`, `tools` (a list of JSON schemas, or its JSON as a text), `documents` and
/// `chat_template_kwargs`. A content is a text or a list of text parts. Messages may have `reasoning_content`, `tool_calls`, `name`,
/// and `train` or `weight`. Images, labels, and weights of rows are refused.
pub fn read_training_rows(path: impl AsRef<Path>, options: &ReadOptions) -> Result<TrainingRows> {
    let path = path.as_ref();
    let (mut rows, mut warnings) = (Vec::new(), Warnings::default());
    for_each_row(path, options, &mut warnings, &mut |value, warnings| {
        if let Some(text) = plain_text(value, &mut warnings.ignored_keys)? {
            rows.push(TrainingRow::Text(text));
            return Ok(());
        }
        let conversation = parse(value, &mut warnings.ignored_keys)?;
        let messages = &conversation.messages;
        let Some(first) = messages.iter().position(|m| m.role() == "assistant") else {
            return Err("no assistant message".to_owned().into());
        };
        warnings.empty_answers += usize::from(messages.iter().any(is_empty_answer));
        warnings.without_question += usize::from(!messages[..first].iter().any(|m| m.role() == "user"));
        rows.push(TrainingRow::Conversation(conversation));
        Ok(())
    })?;
    if rows.is_empty() {
        return Err(nothing_in(path, "contains no conversations", &warnings));
    }
    warnings.duplicates = Duplicates::within(rows.iter().map(Keyed::keys));
    Ok(TrainingRows { rows, warnings })
}

fn is_empty_answer(message: &ChatMessage) -> bool {
    message.role() == "assistant" && message.text().trim().is_empty() && other_fields(message).is_empty()
}

/// The error for a file without usable rows, with the reasons why they were left out. If no record could be read, one of the
/// broken ones is enough.
pub(crate) fn nothing_in(path: &Path, message: &str, warnings: &Warnings) -> Error {
    let why = match warnings.broken.first.first().filter(|_| warnings.broken.count == warnings.records) {
        Some(first) => format!("; {0} of {0} records are broken: {first}", warnings.records),
        None => warnings.lines().iter().map(|line| format!("; {line}")).collect(),
    };
    Error::unusable(path, format!("{message}{why}"))
}

/// Reads prompts from a file or folder as in [`read_training_rows`]: `{"prompt": text or messages}`, or any other form of a
/// conversation, whose last assistant message is removed. A prompt without a user message is a broken row. With each prompt comes its
/// row, with renamed columns: it may contain the right answer.
pub fn read_prompts(path: impl AsRef<Path>, options: &ReadOptions) -> Result<(Vec<(Conversation, Value)>, Warnings)> {
    let path = path.as_ref();
    let (mut prompts, mut warnings) = (Vec::new(), Warnings::default());
    for_each_row(path, options, &mut warnings, &mut |value, warnings| {
        let mut prompt = match value.as_object().filter(|object| object.contains_key("prompt")) {
            Some(object) => {
                let messages = side(object, "prompt", "user", &mut warnings.ignored_keys)?;
                with_columns(object, messages)?
            }
            None => parse(value, &mut warnings.ignored_keys)?,
        };
        if prompt.messages.last().is_some_and(|m| m.role() == "assistant") {
            prompt.messages.pop();
        }
        if !prompt.messages.iter().any(|m| m.role() == "user") {
            return Err("no user message".to_owned().into());
        }
        prompts.push((prompt, value.clone()));
        Ok(())
    })?;
    if prompts.is_empty() {
        return Err(nothing_in(path, "contains no prompts", &warnings));
    }
    // Columns such as the expected answer belong to other stages.
    warnings.ignored_keys.clear();
    warnings.duplicates = Duplicates::within(prompts.iter().map(|(prompt, _)| prompt_key(&prompt.messages).into()));
    Ok((prompts, warnings))
}

/// The forms of a conversation: (required columns, optional columns).
const FORMS: [(&[&str], &[&str]); 5] = [
    (&["messages"], &[]),
    (&["conversations"], &[]),
    (&["prompt", "completion"], &[]),
    (&["question", "answer"], &[]),
    (&["instruction", "output"], &["input", "history"]),
];

/// Columns of every form. Those of `refuse_columns` were read too.
const COLUMNS: [&str; 9] =
    ["id", "system", "tools", "documents", "chat_template_kwargs", "weight", "train", "trainable", "loss"];

/// Whether a row has all these columns. Datasets merged from several tables have null columns, which count only if `null`.
fn has(object: &Map<String, Value>, columns: &[&str], null: bool) -> bool {
    columns.iter().all(|column| object.get(*column).is_some_and(|value| null || !value.is_null()))
}

/// The text of a row that has no other form.
fn plain_text(value: &Value, ignored_keys: &mut IgnoredKeys) -> Result<Option<String>, RowError> {
    let Some(object) = value.as_object() else { return Ok(None) };
    if !has(object, &["text"], false) || FORMS.iter().any(|form| has(object, form.0, false)) {
        return Ok(None);
    }
    refuse_columns(object)?;
    for key in ["system", "tools"] {
        if object.get(key).is_some_and(is_set) {
            let message =
                format!("\"{key}\" has no effect on a row with \"text\", which is trained on as it is; remove it");
            return Err(RowError::Refused(message));
        }
    }
    let text = text_of(object, "text")?;
    if text.trim().is_empty() {
        return Err("\"text\" is empty".to_owned().into());
    }
    let unknown = object.iter().filter(|(key, value)| !["text", "id"].contains(&key.as_str()) && !value.is_null());
    ignored_keys.extend(unknown.map(|(key, _)| key.clone()));
    Ok(Some(text.to_owned()))
}

fn parse(value: &Value, ignored_keys: &mut IgnoredKeys) -> Result<Conversation, RowError> {
    if let Some(list) = value.as_array() {
        return Ok(messages(list, ignored_keys)?.into());
    }
    let Some(object) = value.as_object() else {
        return Err(format!(
            "a record of this file must be an object such as {{\"prompt\": …, \"completion\": …}}; this one is {}",
            kind(value)
        )
        .into());
    };
    let form = FORMS.iter().find(|form| has(object, form.0, false));
    let Some((needed, optional)) = form.or_else(|| FORMS.iter().find(|form| has(object, form.0, true))) else {
        let also = match object.contains_key("chosen") || object.contains_key("answers") {
            true => " (preferences are data of `llm-train reward`)",
            false => "",
        };
        return Err(format!(
            "{} is not a conversation{also}; use the keys \"messages\", \"conversations\", \"prompt\" and \"completion\", \
             \"question\" and \"answer\", or \"instruction\" and \"output\"{}",
            described(value),
            columns_hint(object)
        )
        .into());
    };
    refuse_columns(object)?;
    let mut all = earlier_turns(object)?;
    match *needed {
        [list @ ("messages" | "conversations")] => match object.get(*list) {
            Some(Value::Array(turns)) => all.extend(messages(turns, ignored_keys)?),
            other => {
                return Err(format!("\"{list}\" is {}; it must be a list of messages", kind_of(other)).into());
            }
        },
        ["prompt", "completion"] => {
            let prompt = side(object, "prompt", "user", ignored_keys)?;
            // Only the completion is trained on, whatever answers the prompt contains.
            let earlier = |m: ChatMessage| if m.role() == "assistant" { m.with_train(false) } else { m };
            all.extend(prompt.into_iter().map(earlier));
            all.extend(side(object, "completion", "assistant", ignored_keys)?);
        }
        [question, answer] => {
            let mut asked = text_of(object, question)?.to_owned();
            if object.get("input").is_some_and(|input| !input.is_null()) && optional.contains(&"input") {
                let input = text_of(object, "input")?;
                asked = if input.is_empty() { asked } else { format!("{asked}\n\n{input}") };
            }
            all.extend([ChatMessage::user(asked), ChatMessage::assistant(text_of(object, answer)?)]);
        }
        _ => {}
    }
    let read = |key: &str| COLUMNS.iter().chain(*needed).chain(*optional).any(|known| *known == key);
    ignored_keys
        .extend(object.iter().filter(|(key, value)| !read(key) && !value.is_null()).map(|(key, _)| key.clone()));
    with_columns(object, all)
}

/// How to name the columns of a row of an unknown form: an example with the names of this row.
fn columns_hint(object: &Map<String, Value>) -> String {
    let mut texts = object.iter().filter(|(_, value)| value.is_string()).map(|(key, _)| key);
    match (texts.next(), texts.next()) {
        (Some(prompt), Some(completion)) => format!(
            ", or name the columns in the recipe's [data.columns], for example by --set data.columns.prompt={prompt:?} --set \
             data.columns.completion={completion:?}"
        ),
        (Some(one), None) if object.len() == 1 && one.contains([';', '\t', '|']) => {
            "; the columns seem to be separated by another character than the comma: write the file with commas, or with tabs as .tsv"
                .to_owned()
        }
        (Some(one), None) => {
            format!(", or train on the column as plain text by --set data.columns.text={one:?}")
        }
        _ => String::new(),
    }
}

fn kind_of(value: Option<&Value>) -> &'static str {
    value.map_or("missing", kind)
}

/// The conversation of these messages with the columns `tools`, `documents` and `chat_template_kwargs`.
fn with_columns(object: &Map<String, Value>, messages: Vec<ChatMessage>) -> Result<Conversation, RowError> {
    let systems = messages.iter().take_while(|m| m.role() == "system").count();
    if systems > 1 && object.get("system").is_some_and(is_set) {
        return Err("the row has a system message and the column \"system\"; keep one of them".to_owned().into());
    }
    let variables = match object.get("chat_template_kwargs").filter(|value| is_set(value)) {
        None => Map::new(),
        Some(Value::Object(variables)) => variables.clone(),
        Some(other) => {
            return Err(format!("\"chat_template_kwargs\" is {}; it must be an object", kind(other)).into());
        }
    };
    let tools = objects(object, "tools")?.map(|tools| tools.into_iter().map(as_function).collect());
    Ok(Conversation { messages, tools, documents: objects(object, "documents")?, variables })
}

/// A tool in the form that chat templates read, `{"type": "function", "function": {"name", …}}`; ShareGPT has only the inner object.
fn as_function(tool: Value) -> Value {
    match tool.get("function").is_none()
        && tool.get("name").is_some()
        && tool.get("type").is_none_or(|t| t == "function")
    {
        true => serde_json::json!({"type": "function", "function": tool}),
        false => tool,
    }
}

/// The messages of the keys `system` and `history`.
fn earlier_turns(object: &Map<String, Value>) -> Result<Vec<ChatMessage>, RowError> {
    let mut turns = Vec::new();
    if object.get("system").is_some_and(|system| !system.is_null()) {
        let system = text_of(object, "system")?;
        turns.extend((!system.is_empty()).then(|| ChatMessage::system(system)));
    }
    match object.get("history").filter(|_| object.contains_key("instruction")) {
        None | Some(Value::Null) => {}
        Some(Value::Array(pairs)) => {
            for pair in pairs {
                match pair.as_array().map(Vec::as_slice) {
                    Some([Value::String(asked), Value::String(answered)]) => {
                        turns.extend([ChatMessage::user(asked), ChatMessage::assistant(answered)]);
                    }
                    _ => return Err("\"history\" must be a list of pairs of strings".to_owned().into()),
                }
            }
        }
        Some(other) => {
            return Err(format!("\"history\" is {}; it must be a list of pairs of strings", kind(other)).into());
        }
    }
    Ok(turns)
}

/// The messages of a key: a string becomes one message of `role`, a list is a list of messages.
pub(crate) fn side(
    object: &Map<String, Value>,
    key: &str,
    role: &str,
    ignored_keys: &mut IgnoredKeys,
) -> Result<Vec<ChatMessage>, RowError> {
    match object.get(key) {
        Some(Value::String(text)) => Ok(vec![ChatMessage::new(role, text)]),
        Some(Value::Array(list)) => messages(list, ignored_keys).map_err(|wrong| wrong.within(&format!("\"{key}\""))),
        other => Err(format!("\"{key}\" is {}; it must be a string or a list of messages", kind_of(other)).into()),
    }
}

#[cfg(test)]
mod tests;
