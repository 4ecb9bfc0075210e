//! Ranked answers: what people, or a simulated annotator, prefer.

use std::collections::HashSet;
use std::path::Path;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::conversation::messages;
use crate::{Error, Message, Result, Role, read_jsonl};

/// Answers to one prompt in the order of preference (`{"id", "prompt", "answers", "order"}` in JSONL).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranking {
    /// The same for all rankings of one prompt; a split between training and test never cuts it apart.
    pub id: String,
    /// The conversation up to the answer.
    pub prompt: Vec<Message>,
    /// The answers, in any order.
    pub answers: Vec<String>,
    /// Indices of `answers`, best first.
    pub order: Vec<usize>,
}

impl Ranking {
    /// All pairs (better, worse) of indices of `answers`: `k · (k - 1) / 2` of them.
    pub fn pairs(&self) -> Vec<(usize, usize)> {
        let pairs = |(at, &better)| self.order[at + 1..].iter().map(move |&worse| (better, worse));
        self.order.iter().enumerate().flat_map(pairs).collect()
    }

    /// Checks that `order` names each answer once and that there are at least two.
    pub fn validate(&self) -> Result<(), String> {
        let mut sorted = self.order.clone();
        sorted.sort_unstable();
        if self.answers.len() < 2 || !sorted.into_iter().eq(0..self.answers.len()) {
            let (order, answers) = (&self.order, self.answers.len());
            return Err(format!("\"order\" {order:?} must name each of the {answers} answers once, and two at least"));
        }
        Ok(())
    }
}

/// The rankings of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rankings {
    /// Those that say something.
    pub rankings: Vec<Ranking>,
    /// How many were left out: their answers are the same, or the dialogues part before their last turn.
    pub skipped: usize,
}

/// Reads a JSONL file (`.gz` too) of rankings. Each line may be
///
/// - `{"id", "prompt": [messages], "answers", "order"}`: this crate's own;
/// - `{"prompt", "chosen", "rejected"}` with texts or lists of messages (TRL);
/// - `{"chosen", "rejected"}` as dialogues `"\n\nHuman: … \n\nAssistant: …"` (Anthropic's HH), or as lists of messages
///   that differ in their last one.
pub fn read_rankings(path: &Path) -> Result<Rankings> {
    let mut read = Rankings { rankings: Vec::new(), skipped: 0 };
    for (line, value) in read_jsonl(path)? {
        let ranking = parse(&value).map_err(|message| Error::Line { path: path.into(), line, message })?;
        match ranking.filter(|ranking| ranking.answers.iter().any(|a| *a != ranking.answers[0])) {
            Some(ranking) => read.rankings.push(ranking),
            None => read.skipped += 1,
        }
    }
    if read.rankings.is_empty() {
        return Err(Error::unusable(path, "holds no rankings of different answers"));
    }
    Ok(read)
}

/// Splits items so that a share of the ids, and all items of each, is held out: (training, held out).
///
/// Never by item: answers to one prompt on both sides of the split would leak.
pub fn split_by_prompt<T>(items: Vec<T>, id: impl Fn(&T) -> &str, share: f64, seed: u64) -> (Vec<T>, Vec<T>) {
    let mut seen = HashSet::new();
    let mut ids: Vec<String> = items.iter().map(|item| id(item).to_owned()).collect();
    ids.retain(|id| seen.insert(id.clone()));
    ids.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let held_out = (ids.len() as f64 * share.clamp(0., 1.)).round() as usize;
    let held_out: HashSet<&String> = ids[..held_out].iter().collect();
    let mut parts = (Vec::new(), Vec::new());
    for item in items {
        let part = if held_out.contains(&id(&item).to_owned()) { &mut parts.1 } else { &mut parts.0 };
        part.push(item);
    }
    parts
}

/// A ranking; none if two dialogues part before their last turn, so that they are no two answers to one prompt.
fn parse(value: &Value) -> Result<Option<Ranking>, String> {
    if value.get("answers").is_some() {
        let ranking: Ranking = serde_json::from_value(value.clone()).map_err(|e| e.to_string())?;
        ranking.validate()?;
        return Ok(Some(ranking));
    }
    let (Some(chosen), Some(rejected)) = (value.get("chosen"), value.get("rejected")) else {
        let keys: Vec<&str> = value.as_object().map(|o| o.keys().map(String::as_str).collect()).unwrap_or_default();
        return Err(format!(
            "keys {keys:?} are no ranking; write \"chosen\" and \"rejected\", or \"answers\" and \"order\""
        ));
    };
    let (mut chosen, mut rejected) = (turns(chosen)?, turns(rejected)?);
    let mut prompt = match value.get("prompt") {
        Some(prompt) => turns_of(prompt, Role::User)?,
        None => Vec::new(),
    };
    let (Some(best), Some(worst)) = (chosen.pop(), rejected.pop()) else {
        return Err("\"chosen\" or \"rejected\" is empty".to_owned());
    };
    if best.role != Role::Assistant || worst.role != Role::Assistant {
        return Err("\"chosen\" and \"rejected\" must end with the assistant's turn".to_owned());
    }
    if chosen != rejected {
        return Ok(None);
    }
    prompt.extend(chosen);
    if prompt.is_empty() {
        return Err("there is no prompt; write \"prompt\"".to_owned());
    }
    let id = prompt.iter().map(|m| m.content.as_str()).collect::<Vec<_>>().join("\n");
    Ok(Some(Ranking { id, prompt, answers: vec![best.content, worst.content], order: vec![0, 1] }))
}

fn turns(value: &Value) -> Result<Vec<Message>, String> {
    turns_of(value, Role::Assistant)
}

/// A list of messages, a dialogue in Anthropic's form, or a bare text that `role` says.
fn turns_of(value: &Value, role: Role) -> Result<Vec<Message>, String> {
    match value {
        Value::Array(list) => messages(list, "role", "content"),
        Value::String(text) if text.trim_start().starts_with("Human:") => dialogue(text),
        Value::String(text) => Ok(vec![Message::new(role, text)]),
        _ => Err("\"prompt\", \"chosen\" and \"rejected\" must be texts or lists of messages".to_owned()),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &str) -> Result<Rankings> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.jsonl");
        std::fs::write(&path, content).unwrap();
        read_rankings(&path)
    }

    #[test]
    fn pairs_are_all_pairs_better_first() {
        let ranking =
            Ranking { id: String::new(), prompt: vec![], answers: vec![String::new(); 4], order: vec![2, 0, 3, 1] };
        assert_eq!(ranking.pairs(), [(2, 0), (2, 3), (2, 1), (0, 3), (0, 1), (3, 1)]);
    }

    #[test]
    fn every_form_becomes_a_ranking() {
        let prompt = vec![Message::user("q"), Message::assistant("a"), Message::user("r")];
        for line in [
            r#"{"id": "q\na\nr", "prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}], "answers": ["good", "bad"], "order": [0, 1]}"#,
            r#"{"chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: bad"}"#,
            r#"{"prompt": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r", "chosen": "good", "rejected": "bad"}"#,
            r#"{"prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}], "chosen": [{"role": "assistant", "content": "good"}], "rejected": [{"role": "assistant", "content": "bad"}]}"#,
        ] {
            let expected = Ranking {
                id: "q\na\nr".to_owned(),
                prompt: prompt.clone(),
                answers: vec!["good".to_owned(), "bad".to_owned()],
                order: vec![0, 1],
            };
            assert_eq!(read(line).unwrap().rankings, [expected], "{line}");
        }
    }

    #[test]
    fn pairs_that_say_nothing_are_counted_and_left_out_and_nonsense_is_named() {
        let all = [
            r#"{"prompt": "q", "chosen": "a", "rejected": "a"}"#,
            r#"{"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b"}"#,
            r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#,
        ];
        let all = read(&all.join("\n")).unwrap();
        assert_eq!((all.rankings.len(), all.skipped), (1, 2));
        for (content, part) in [
            (r#"{"prompt": "q", "choosen": "a", "rejected": "b"}"#, "write \"chosen\" and \"rejected\""),
            (r#"{"chosen": "a", "rejected": "b"}"#, "there is no prompt"),
            (
                r#"{"id": "1", "prompt": [], "answers": ["a", "b"], "order": [0, 0]}"#,
                "must name each of the 2 answers once",
            ),
            (
                r#"{"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q"}"#,
                "must end with the assistant's turn",
            ),
        ] {
            let message = read(content).unwrap_err().to_string();
            assert!(message.contains(part) && message.contains("line 1"), "{message}");
        }
    }

    #[test]
    fn a_split_never_cuts_a_prompt_apart() {
        let items: Vec<(String, usize)> = (0..300).map(|i| ((i / 3).to_string(), i)).collect();
        let (train, held_out) = split_by_prompt(items, |item| item.0.as_str(), 0.2, 7);
        assert_eq!((train.len(), held_out.len()), (240, 60));
        assert!(train.iter().all(|a| held_out.iter().all(|b| a.0 != b.0)));
    }
}
