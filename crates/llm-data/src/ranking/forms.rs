//! The forms in which files write rankings.

use serde_json::{Map, Value};

use super::Ranking;
use crate::conversation::side;
use crate::files::{described, kind};
use crate::messages::{IgnoredKeys, refuse_unsupported_keys, text_of};
use crate::{Message, Role};

/// The keys of a ranking.
const READ: [&str; 8] = ["id", "prompt", "answers", "order", "ranks", "chosen", "rejected", "margin"];

/// A ranking; none if two dialogues differ before their last turn, so that they are no two answers to one prompt.
pub(super) fn parse(value: &Value, ignored_keys: &mut IgnoredKeys) -> Result<Option<Ranking>, String> {
    let form = |object: &Map<String, Value>| {
        object.contains_key("answers") || (object.contains_key("chosen") && object.contains_key("rejected"))
    };
    let Some(object) = value.as_object().filter(|object| form(object)) else {
        return Err(format!(
            "{} is no ranking; write \"prompt\", \"chosen\" and \"rejected\", or \"prompt\", \"answers\" and \"order\"",
            described(value)
        ));
    };
    refuse_unsupported_keys(object)?;
    let ranking = match object.contains_key("answers") {
        true => Some(ranked(object, ignored_keys)?),
        false => chosen_and_rejected(object, ignored_keys)?,
    };
    ignored_keys.extend(object.keys().filter(|key| !READ.contains(&key.as_str())).cloned());
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
        Some(Value::Number(margin)) => margin.as_f64().ok_or(format!("\"margin\" is {margin}, too large a number")),
        Some(other) => Err(format!("\"margin\" is {}; it must be a number", kind(other))),
    }
}

/// `{"prompt", "answers", "order"}` or `{"prompt", "answers", "ranks"}`.
fn ranked(object: &Map<String, Value>, ignored_keys: &mut IgnoredKeys) -> Result<Ranking, String> {
    let prompt = turns(object, "prompt", Role::User, ignored_keys)?;
    if prompt.is_empty() {
        return Err("\"prompt\" is empty; write what the answers answer".to_owned());
    }
    let Some(Value::Array(list)) = object.get("answers") else {
        return Err(format!(
            "\"answers\" is {}; it must be a list of texts",
            object.get("answers").map_or("missing", kind)
        ));
    };
    let text = |(at, answer): (usize, &Value)| match answer.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(format!("answer {at} is {}; it must be a text", kind(answer))),
    };
    let answers = list.iter().enumerate().map(text).collect::<Result<Vec<String>, _>>()?;
    let groups = match (object.get("order"), object.get("ranks")) {
        (Some(order), None | Some(Value::Null)) => groups_of_order(order, answers.len())?,
        (None | Some(Value::Null), Some(ranks)) => groups_of_ranks(ranks, answers.len())?,
        (None, None) => return Err("there is no \"order\" and no \"ranks\"; write one of them".to_owned()),
        (Some(_), Some(_)) => return Err("\"order\" and \"ranks\" are both there; write one of them".to_owned()),
    };
    if groups.iter().flatten().count() < 2 {
        return Err("fewer than two answers are ranked".to_owned());
    }
    // Answers that nobody ranked say nothing; the others move together.
    let mut kept: Vec<usize> = groups.iter().flatten().copied().collect();
    kept.sort_unstable();
    let place = |index: usize| kept.binary_search(&index).unwrap_or_default();
    let order = groups.iter().map(|group| group.iter().map(|&index| place(index)).collect()).collect();
    let answers = kept.iter().map(|&index| answers[index].clone()).collect();
    Ok(Ranking { id: String::new(), prompt, answers, order, margin: 0. })
}

/// The groups of `[2, [0, 1]]`.
fn groups_of_order(order: &Value, answers: usize) -> Result<Vec<Vec<usize>>, String> {
    let wrong = || {
        format!(
            "\"order\" is {order}; it must hold indices of the {answers} answers, best first, each at most once, and \
             lists of indices where answers tie"
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

/// The groups of `[2, 2, 1]`, the rank of each answer.
fn groups_of_ranks(ranks: &Value, answers: usize) -> Result<Vec<Vec<usize>>, String> {
    let wrong = || format!("\"ranks\" is {ranks}; it must hold a number, or null, for each of the {answers} answers");
    let list = ranks.as_array().filter(|list| list.len() == answers).ok_or_else(wrong)?;
    let mut ranked = Vec::new();
    for (index, rank) in list.iter().enumerate().filter(|(_, rank)| !rank.is_null()) {
        ranked.push((rank.as_f64().ok_or_else(wrong)?, index));
    }
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
    let groups = ranked.chunk_by(|a, b| a.0 == b.0);
    Ok(groups.map(|group| group.iter().map(|(_, index)| *index).collect()).collect())
}

/// `{"prompt", "chosen", "rejected"}`, the prompt given or the beginning that the two have in common.
fn chosen_and_rejected(object: &Map<String, Value>, ignored_keys: &mut IgnoredKeys) -> Result<Option<Ranking>, String> {
    let mut side = |key: &str| turns(object, key, Role::Assistant, ignored_keys);
    let (mut chosen, mut rejected) = (side("chosen")?, side("rejected")?);
    let (Some(best), Some(worst)) = (chosen.pop(), rejected.pop()) else {
        return Err("\"chosen\" or \"rejected\" is empty".to_owned());
    };
    if best.role != Role::Assistant || worst.role != Role::Assistant {
        return Err("\"chosen\" and \"rejected\" must end with the assistant's turn".to_owned());
    }
    if chosen != rejected {
        return Ok(None);
    }
    let mut prompt = match object.get("prompt") {
        None | Some(Value::Null) => Vec::new(),
        // As TRL does: a text beside whole conversations is not said once more.
        Some(Value::String(_)) if !chosen.is_empty() && object["chosen"].is_array() => Vec::new(),
        Some(_) => turns(object, "prompt", Role::User, ignored_keys)?,
    };
    if chosen.starts_with(&prompt) {
        prompt = chosen;
    } else {
        prompt.append(&mut chosen);
    }
    if prompt.is_empty() {
        return Err("there is no prompt; write \"prompt\"".to_owned());
    }
    let answers = vec![best.content, worst.content];
    Ok(Some(Ranking::strict(String::new(), prompt, answers, &[0, 1])))
}

/// A list of messages, a dialogue in Anthropic's form, or a bare text that `role` says.
fn turns(
    object: &Map<String, Value>,
    key: &str,
    role: Role,
    ignored_keys: &mut IgnoredKeys,
) -> Result<Vec<Message>, String> {
    match text_of(object, key) {
        Ok(text) if text.trim_start().starts_with("Human:") => dialogue(text),
        _ => side(object, key, role, ignored_keys),
    }
}

fn dialogue(text: &str) -> Result<Vec<Message>, String> {
    const HUMAN: &str = "\n\nHuman:";
    const ASSISTANT: &str = "\n\nAssistant:";
    let text = format!("\n\n{}", text.trim_start());
    let (mut rest, mut messages) = (text.as_str(), Vec::new());
    while !rest.is_empty() {
        let (role, body) = if let Some(body) = rest.strip_prefix(HUMAN) {
            (Role::User, body)
        } else if let Some(body) = rest.strip_prefix(ASSISTANT) {
            (Role::Assistant, body)
        } else {
            return Err("a dialogue must consist of \"Human:\" and \"Assistant:\" turns".to_owned());
        };
        let end = [HUMAN, ASSISTANT].iter().filter_map(|mark| body.find(mark)).min().unwrap_or(body.len());
        messages.push(Message::new(role, body[..end].trim()));
        rest = &body[end..];
    }
    Ok(messages)
}
