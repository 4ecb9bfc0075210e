//! The chat template of a model, and the variables that `transformers` gives it.

use std::sync::Arc;

use chrono::{Local, NaiveDate, NaiveDateTime};
use serde_json::{Map, Value as Json};

use crate::jinja::{Char, Problem, TEMPLATE, Template, Value};
use crate::message::{Chat, ChatMessage};
use crate::{Error, Result};

/// The names under which models keep their reasoning, as in `transformers`. The first one that a message has is given to the
/// template as `reasoning_content` and `thinking`.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Marks the end of a message that is continued. The blank shows whether the template removes white space at the end.
const CONTINUE_MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Settings of all conversations of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TemplateOptions {
    /// Further variables of the template, such as `enable_thinking`. Those of a conversation win over them.
    pub variables: Map<String, Json>,
    /// The date for `strftime_now`, as `YYYY-MM-DD`; by default today.
    pub date: Option<String>,
    /// The template to use, if the tokenizer has several; by default `tool_use` for conversations with tools if there is
    /// one, else `default`.
    pub name: Option<String>,
}

/// [`TemplateOptions`] after their checks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    pub(crate) variables: Map<String, Json>,
    pub(crate) now: Option<NaiveDateTime>,
    pub(crate) name: Option<String>,
}

impl TemplateOptions {
    /// The checked settings. An error if the date is not a date, or a variable has a name that is taken.
    pub(crate) fn settings(self) -> Result<Settings> {
        let taken = ["messages", "tools", "documents", "add_generation_prompt"];
        if let Some(name) = self.variables.keys().find(|name| taken.contains(&name.as_str())) {
            return Err(Error::TemplateOption {
                message: format!("the variable \"{name}\" is set by the conversation; remove it"),
            });
        }
        let date = self.date.map(|date| {
            let parsed = NaiveDate::parse_from_str(&date, "%Y-%m-%d").ok().and_then(|date| date.and_hms_opt(0, 0, 0));
            parsed.ok_or_else(|| Error::TemplateOption { message: format!("date = {date:?}; it must be YYYY-MM-DD") })
        });
        Ok(Settings { variables: self.variables, now: date.transpose()?, name: self.name })
    }
}

/// How a rendered conversation ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// After the last message.
    Closed,
    /// With the beginning of an answer.
    GenerationPrompt,
    /// Within the last message, so that it can be continued.
    Open,
}

impl End {
    pub(crate) fn of(add_generation_prompt: bool) -> Self {
        if add_generation_prompt { Self::GenerationPrompt } else { Self::Closed }
    }
}

/// The templates of a tokenizer, each parsed once.
#[derive(Clone)]
pub(crate) struct ChatTemplate {
    /// (name, template); a tokenizer with one template has it under `default`.
    named: Vec<(String, Source)>,
}

#[derive(Clone)]
struct Source {
    text: String,
    /// The parsed template, or the error of the parser. A model with an unsupported template can still be used for plain text.
    template: std::result::Result<Arc<Template>, Problem>,
}

impl ChatTemplate {
    pub(crate) fn new(source: &str) -> Self {
        Self::named(vec![("default".to_owned(), source.to_owned())])
    }

    /// Several templates with their names.
    pub(crate) fn named(templates: Vec<(String, String)>) -> Self {
        let source = |text: String| Source { template: Template::parse(&text).map(Arc::new), text };
        Self { named: templates.into_iter().map(|(name, text)| (name, source(text))).collect() }
    }

    /// The source of the template named `default`, if there is one.
    pub(crate) fn source(&self) -> Option<&str> {
        self.get("default").map(|source| source.text.as_str())
    }

    /// The sources of all templates with their names.
    pub(crate) fn sources(&self) -> impl Iterator<Item = (&str, &str)> {
        self.named.iter().map(|(name, source)| (name.as_str(), source.text.as_str()))
    }

    fn get(&self, name: &str) -> Option<&Source> {
        self.named.iter().find(|(known, _)| known == name).map(|(_, source)| source)
    }

    fn select(&self, name: Option<&str>, tools: bool) -> Result<&Source> {
        let selected = match name {
            Some(name) => self.get(name),
            None if tools => self.get("tool_use").or_else(|| self.get("default")),
            None => self.get("default"),
        };
        selected.ok_or_else(|| {
            let names: Vec<&str> = self.named.iter().map(|(name, _)| name.as_str()).collect();
            let wanted = name.unwrap_or("default");
            let message =
                format!("the tokenizer has no chat template named \"{wanted}\"; choose one of {}", names.join(", "));
            Error::TemplateOption { message }
        })
    }

    /// Renders a conversation. The origin of a character is [`TEMPLATE`] for the template, roles, special tokens and the variables
    /// of `settings`; `i + 1` for message `i`; the number of messages + 1 for tools, documents and variables of the conversation.
    pub(crate) fn render(
        &self,
        chat: Chat<'_>,
        end: End,
        special_tokens: &[(&str, &str)],
        settings: &Settings,
    ) -> Result<Vec<Char>> {
        let source = self.select(settings.name.as_deref(), chat.tools.is_some())?;
        let problem = |problem: Problem| Error::Template { cause: problem.to_string() };
        let template = source.template.as_ref().map_err(|cause| problem(cause.clone()))?;
        let origin = |index: usize| u32::try_from(index).unwrap_or(u32::MAX >> 1);
        let data = origin(chat.messages.len() + 1);
        let mut messages = Vec::with_capacity(chat.messages.len());
        for (index, message) in chat.messages.iter().enumerate() {
            let mut fields = given_fields(message);
            if end == End::Open && index + 1 == chat.messages.len() {
                mark_end(&mut fields, index)?;
            }
            messages.push(message_value(&fields, origin(index + 1)).map_err(problem)?);
        }
        let list = |items: Option<&[Json]>| match items {
            None => Ok(Value::None),
            Some(items) => Value::from_json(&Json::Array(items.to_vec()), data),
        };
        let mut variables = Vec::new();
        for (name, token) in special_tokens {
            variables.push(((*name).to_owned(), Value::from_json(&Json::from(*token), TEMPLATE).map_err(problem)?));
        }
        for (given, origin) in [(Some(&settings.variables), TEMPLATE), (chat.variables, data)] {
            for (name, value) in given.into_iter().flatten() {
                variables.push((name.clone(), Value::from_json(value, origin).map_err(problem)?));
            }
        }
        variables.push(("messages".to_owned(), Value::list(messages).map_err(problem)?));
        variables.push(("tools".to_owned(), list(chat.tools).map_err(problem)?));
        variables.push(("documents".to_owned(), list(chat.documents).map_err(problem)?));
        variables.push(("add_generation_prompt".to_owned(), Value::Bool(end == End::GenerationPrompt)));
        let now = settings.now.unwrap_or_else(|| Local::now().naive_local());
        let chars = template.render(variables, chat.size(), now).map_err(problem)?;
        if end == End::Open { cut_at_mark(chars, &chat.messages[chat.messages.len() - 1]) } else { Ok(chars) }
    }
}

/// The keys of a message for the template, as `transformers` gives them: without null values, and with the reasoning under its
/// usual names.
fn given_fields(message: &ChatMessage) -> Map<String, Json> {
    let given = message.fields().iter().filter(|(_, value)| !value.is_null());
    let mut fields: Map<String, Json> = given.map(|(key, value)| (key.clone(), value.clone())).collect();
    if let Some(reasoning) = REASONING.iter().find_map(|key| fields.get(*key)).cloned() {
        let thinking = fields.shift_remove("thinking").unwrap_or_else(|| reasoning.clone());
        fields.shift_insert(0, "thinking".to_owned(), thinking);
        fields.insert("reasoning_content".to_owned(), reasoning);
    }
    fields
}

/// A message as a dictionary; its role is part of the template.
fn message_value(fields: &Map<String, Json>, origin: u32) -> std::result::Result<Value, Problem> {
    let entries = fields.iter().map(|(key, value)| {
        let origin = if key == "role" { TEMPLATE } else { origin };
        Ok((Value::from_json(&Json::from(key.as_str()), origin)?, Value::from_json(value, origin)?))
    });
    Value::dict(entries.collect::<std::result::Result<_, _>>()?)
}

/// The text at the end of a message, if it has one: its content, or the last part with a text.
fn last_text(fields: &mut Map<String, Json>) -> Option<&mut String> {
    match fields.get_mut("content")? {
        Json::String(text) => Some(text),
        Json::Array(parts) => parts.iter_mut().rev().find_map(|part| match part.get_mut("text")? {
            Json::String(text) => Some(text),
            _ => None,
        }),
        _ => None,
    }
}

fn mark_end(fields: &mut Map<String, Json>, index: usize) -> Result<()> {
    last_text(fields).ok_or(Error::NothingToContinue { index })?.push_str(CONTINUE_MARK);
    Ok(())
}

/// The rendered conversation up to the end of the text of the last message.
fn cut_at_mark(mut chars: Vec<Char>, last: &ChatMessage) -> Result<Vec<Char>> {
    let find = |text: &str, from: &[Char]| {
        let needle: Vec<char> = text.chars().collect();
        from.windows(needle.len().max(1)).rposition(|window| window.iter().map(|c| c.char).eq(needle.iter().copied()))
    };
    let changed = || Error::Template {
        cause: "the last message is changed by the template, so it cannot be continued".to_owned(),
    };
    let text = last_text(&mut last.fields().clone()).map(|text| text.clone()).unwrap_or_default();
    let at = find(CONTINUE_MARK.trim_end(), &chars).ok_or_else(changed)?;
    if !text.trim().is_empty() && find(text.trim(), &chars).is_none() {
        return Err(changed());
    }
    let kept = chars[at..].iter().map(|c| c.char).take(CONTINUE_MARK.len()).eq(CONTINUE_MARK.chars());
    chars.truncate(at);
    if !kept {
        while chars.last().is_some_and(|c| c.char.is_whitespace()) {
            chars.pop();
        }
    }
    Ok(chars)
}
