//! The record formats of rankings.

use std::collections::BTreeMap;

use llm_tokenizer::ChatMessage;
use serde_json::{Map, Value};

use super::Ranking;
use crate::conversation::side;
use crate::rows::{IgnoredKeys, RowError, is_set, refuse_columns};
use crate::value::{described, kind, text_of};

/// The keys of a ranking that this crate reads.
const KNOWN_KEYS: [&str; 10] =
    ["id", "prompt", "answers", "order", "ranks", "chosen", "rejected", "margin", "heads", "grades"];

/// Parses a ranking. Returns `None` if `chosen` and `rejected` differ before their last message, because they then are not
/// answers to the same prompt.
pub(super) fn parse(value: &Value, ignored_keys: &mut IgnoredKeys) -> Result<Option<Ranking>, RowError> {
    let is_ranking = |object: &Map<String, Value>| {
        object.contains_key("answers") || (object.contains_key("chosen") && object.contains_key("rejected"))
    };
    let Some(object) = value.as_object().filter(|object| is_ranking(object)) else {
        return Err(format!(
            "{} is not a ranking; use the keys \"prompt\", \"chosen\" and \"rejected\", or \"prompt\", \"answers\" and \"order\"",
            described(value)
        )
        .into());
    };
    refuse_columns(object)?;
    for key in ["tools", "documents", "system", "chat_template_kwargs"] {
        if object.get(key).is_some_and(is_set) {
            let message = format!("\"{key}\" is not supported in rankings; put it into the messages of \"prompt\"");
            return Err(RowError::Refused(message));
        }
    }
    let ranking = match object.contains_key("answers") {
        true => Some(ranked(object, ignored_keys)?),
        false => chosen_and_rejected(object, ignored_keys)?,
    };
    ignored_keys.extend(object.keys().filter(|key| !KNOWN_KEYS.contains(&key.as_str())).cloned());
    let (margin, id) = (margin(object)?, id(object));
    Ok(ranking.map(|ranking| Ranking { id, margin, ..ranking }))
}

fn id(object: &Map<String, Value>) -> String {
    match object.get("id") {
        Some(Value::String(id)) => id.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}

fn margin(object: &Map<String, Value>) -> Result<f64, String> {
    match object.get("margin") {
        None | Some(Value::Null) => Ok(0.),
        Some(Value::Number(margin)) => margin.as_f64().ok_or(format!("\"margin\" is {margin}; it is too large")),
        Some(other) => Err(format!("\"margin\" is {}; it must be a number", kind(other))),
    }
}

/// `{"prompt", "answers", "order"}` or `{"prompt", "answers", "ranks"}`.
fn ranked(object: &Map<String, Value>, ignored_keys: &mut IgnoredKeys) -> Result<Ranking, RowError> {
    let prompt = turns(object, "prompt", "user", ignored_keys)?;
    if prompt.is_empty() {
        return Err("\"prompt\" is empty; it must contain at least one message".to_owned().into());
    }
    let Some(Value::Array(list)) = object.get("answers") else {
        return Err(format!(
            "\"answers\" is {}; it must be a list of strings",
            object.get("answers").map_or("missing", kind)
        )
        .into());
    };
    let text = |(at, answer): (usize, &Value)| match answer.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(format!("answer {at} is {}; it must be a string", kind(answer))),
    };
    let answers = list.iter().enumerate().map(text).collect::<Result<Vec<String>, _>>()?;
    let heads = heads(object, answers.len())?;
    let given = |key: &str| object.get(key).filter(|value| !value.is_null());
    let groups = match (given("order"), given("ranks")) {
        (Some(order), None) => groups_of_order(order, "order", answers.len())?,
        (None, Some(ranks)) => groups_of_ranks(ranks, answers.len())?,
        (None, None) if !heads.is_empty() => Vec::new(),
        (None, None) => return Err("\"order\" or \"ranks\" is missing; use one of them".to_owned().into()),
        (Some(_), Some(_)) => {
            return Err("\"order\" and \"ranks\" are both present; use one of them".to_owned().into());
        }
    };
    // Leave out answers without a rank and renumber the others.
    let mut kept: Vec<usize> = std::iter::once(&groups).chain(heads.values()).flatten().flatten().copied().collect();
    kept.sort_unstable();
    kept.dedup();
    if kept.len() < 2 {
        return Err("fewer than two answers are ranked".to_owned().into());
    }
    let index = |index: &usize| kept.binary_search(index).unwrap_or_default();
    let renumbered = |groups: &Vec<Vec<usize>>| groups.iter().map(|group| group.iter().map(index).collect()).collect();
    let order = renumbered(&groups);
    let heads = heads.iter().map(|(name, groups)| (name.clone(), renumbered(groups))).collect();
    let answers = kept.iter().map(|&index| answers[index].clone()).collect();
    Ok(Ranking { id: String::new(), prompt, answers, order, heads, margin: 0. })
}

/// The orders of `heads` and `grades` by the name of a quality.
fn heads(object: &Map<String, Value>, answers: usize) -> Result<BTreeMap<String, Vec<Vec<usize>>>, String> {
    let mut orders = BTreeMap::new();
    for key in ["heads", "grades"] {
        let named = match object.get(key) {
            None | Some(Value::Null) => continue,
            Some(Value::Object(named)) => named,
            Some(other) => return Err(format!("\"{key}\" is {}; it must be an object by quality", kind(other))),
        };
        for (name, value) in named {
            let order = match key {
                "heads" => groups_of_order(value, &format!("heads.{name}"), answers)?,
                _ => groups_of_grades(value, name, answers)?,
            };
            if orders.insert(name.clone(), order).is_some() {
                return Err(format!("\"{name}\" is in \"heads\" and in \"grades\"; use one of them"));
            }
        }
    }
    Ok(orders)
}

/// The groups of the grade of each answer, the highest first.
fn groups_of_grades(grades: &Value, name: &str, answers: usize) -> Result<Vec<Vec<usize>>, String> {
    let wrong = || {
        format!(
            "\"grades.{name}\" is {grades}; it must contain a number, higher for better, or null for each of the {answers} answers"
        )
    };
    let list = grades.as_array().filter(|list| list.len() == answers).ok_or_else(wrong)?;
    let lower_is_better = |grade: &Value| match grade {
        Value::Null => Ok(Value::Null),
        grade => grade.as_f64().map(|grade| Value::from(-grade)).ok_or_else(wrong),
    };
    let ranks = list.iter().map(lower_is_better).collect::<Result<Vec<_>, _>>()?;
    groups_of_ranks(&ranks.into(), answers)
}

/// The groups of an `order` such as `[2, [0, 1]]`.
fn groups_of_order(order: &Value, key: &str, answers: usize) -> Result<Vec<Vec<usize>>, String> {
    let wrong = || {
        format!(
            "\"{key}\" is {order}; it must contain indices of the {answers} answers, best first, each at most once, with a \
             list of indices for tied answers"
        )
    };
    let index = |value: &Value| value.as_u64().map(|index| index as usize).filter(|&index| index < answers);
    let group = |value: &Value| match value.as_array() {
        Some(list) => list.iter().map(index).collect::<Option<Vec<usize>>>(),
        None => index(value).map(|index| vec![index]),
    };
    let list = order.as_array().ok_or_else(wrong)?;
    let mut groups = list.iter().map(group).collect::<Option<Vec<_>>>().ok_or_else(wrong)?;
    groups.retain(|group| !group.is_empty());
    let mut named: Vec<usize> = groups.iter().flatten().copied().collect();
    named.sort_unstable();
    if named.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(wrong());
    }
    Ok(groups)
}

/// The groups of `ranks`, the rank of each answer, such as `[2, 2, 1]`.
fn groups_of_ranks(ranks: &Value, answers: usize) -> Result<Vec<Vec<usize>>, String> {
    let wrong = || format!("\"ranks\" is {ranks}; it must contain a number or null for each of the {answers} answers");
    let list = ranks.as_array().filter(|list| list.len() == answers).ok_or_else(wrong)?;
    let mut ranked = Vec::new();
    for (index, rank) in list.iter().enumerate().filter(|(_, rank)| !rank.is_null()) {
        ranked.push((rank.as_f64().ok_or_else(wrong)?, index));
    }
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
    let groups = ranked.chunk_by(|a, b| a.0 == b.0);
    Ok(groups.map(|group| group.iter().map(|(_, index)| *index).collect()).collect())
}

/// `{"prompt", "chosen", "rejected"}`. Without `prompt`, the prompt is the common beginning of `chosen` and `rejected`.
fn chosen_and_rejected(
    object: &Map<String, Value>,
    ignored_keys: &mut IgnoredKeys,
) -> Result<Option<Ranking>, RowError> {
    let mut side = |key: &str| turns(object, key, "assistant", ignored_keys);
    let (mut chosen, mut rejected) = (side("chosen")?, side("rejected")?);
    let (Some(best), Some(worst)) = (chosen.pop(), rejected.pop()) else {
        return Err("\"chosen\" or \"rejected\" is empty".to_owned().into());
    };
    if best.role() != "assistant" || worst.role() != "assistant" {
        return Err("\"chosen\" and \"rejected\" must end with an assistant message".to_owned().into());
    }
    if chosen != rejected {
        return Ok(None);
    }
    let mut prompt = match object.get("prompt") {
        None | Some(Value::Null) => Vec::new(),
        // As in TRL: a string prompt is not added to conversations that already contain the prompt.
        Some(Value::String(_)) if !chosen.is_empty() && object["chosen"].is_array() => Vec::new(),
        Some(_) => turns(object, "prompt", "user", ignored_keys)?,
    };
    if chosen.starts_with(&prompt) {
        prompt = chosen;
    } else {
        prompt.append(&mut chosen);
    }
    if prompt.is_empty() {
        return Err("\"prompt\" is missing".to_owned().into());
    }
    for answer in [&best, &worst] {
        if let Some(key) = answer.fields().keys().find(|key| !["role", "content"].contains(&key.as_str())) {
            return Err(RowError::Refused(format!("\"{key}\" of a ranked answer is not supported; remove such rows")));
        }
    }
    let answers = vec![best.text().into_owned(), worst.text().into_owned()];
    let heads = heads(object, 2)?;
    Ok(Some(Ranking { heads, ..Ranking::strict(String::new(), prompt, answers, &[0, 1]) }))
}

/// The messages of a key: a list of messages, a dialogue in Anthropic's HH format, or a string, which becomes one message of
/// `role`.
fn turns(
    object: &Map<String, Value>,
    key: &str,
    role: &str,
    ignored_keys: &mut IgnoredKeys,
) -> Result<Vec<ChatMessage>, RowError> {
    match text_of(object, key) {
        Ok(text) if text.trim_start().starts_with("Human:") => Ok(dialogue(text)?),
        _ => side(object, key, role, ignored_keys),
    }
}

/// Parses `"\n\nHuman: … \n\nAssistant: …"`.
fn dialogue(text: &str) -> Result<Vec<ChatMessage>, String> {
    const HUMAN: &str = "\n\nHuman:";
    const ASSISTANT: &str = "\n\nAssistant:";
    let text = format!("\n\n{}", text.trim_start());
    let (mut rest, mut messages) = (text.as_str(), Vec::new());
    while !rest.is_empty() {
        let (role, body) = if let Some(body) = rest.strip_prefix(HUMAN) {
            ("user", body)
        } else if let Some(body) = rest.strip_prefix(ASSISTANT) {
            ("assistant", body)
        } else {
            return Err("a dialogue must consist of turns that start with \"Human:\" or \"Assistant:\"".to_owned());
        };
        let end = [HUMAN, ASSISTANT].iter().filter_map(|mark| body.find(mark)).min().unwrap_or(body.len());
        messages.push(ChatMessage::new(role, body[..end].trim()));
        rest = &body[end..];
    }
    Ok(messages)
}
