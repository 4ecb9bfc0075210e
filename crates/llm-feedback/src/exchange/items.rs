//! Reads prompts with answers: `{"prompt", "answers"}` in JSONL.

use std::path::Path;

use llm_data::{ChatMessage, read_jsonl};
use serde::Deserialize;
use serde_json::Value;

use super::names::{answer_id, check_count, item_id, wrong};
use crate::Result;
use crate::store::{Added, NewAnswer, NewItem, Ranks, Store};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    id: Option<String>,
    prompt: Prompt,
    answers: Vec<Answer>,
    source: Option<String>,
    gold_order: Option<Vec<Group>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Messages(Vec<ChatMessage>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Text(String),
    Full(Box<FullAnswer>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FullAnswer {
    id: Option<String>,
    text: String,
    token_ids: Option<Vec<u32>>,
    checkpoint: Option<String>,
    sampling: Option<Value>,
    seed: Option<u64>,
    finish: Option<String>,
}

/// Indices of answers with the same rank.
#[derive(Deserialize)]
#[serde(untagged)]
enum Group {
    One(usize),
    Tied(Vec<usize>),
}

/// Adds the items of a file to a database. A record has
///
/// - `prompt`: a text or a list of messages;
/// - `answers`: 1 to 9 texts, or objects with `text` and optionally `id`, `checkpoint`, `sampling`, `seed`, `token_ids`, `finish`;
/// - optionally `id` (default: name of the file and number of the record), `source`, and `gold_order`: the indices of the answers, best
///   first, with a list of indices for tied answers. An item with `gold_order` tests the annotators.
pub fn import_items(store: &Store, path: impl AsRef<Path>) -> Result<Added> {
    let path = path.as_ref();
    let mut items = Vec::new();
    for (number, (line, value)) in read_jsonl(path)?.into_iter().enumerate() {
        let record: Record = serde_json::from_value(value).map_err(|error| {
            wrong(
                path,
                line,
                format!("{error}; an item has \"prompt\" (text or messages) and \"answers\" (list of texts)"),
            )
        })?;
        items.push(item(path, line, item_id(path, number + 1), record)?);
    }
    store.add_items(&items)
}

fn item(path: &Path, line: usize, name: String, record: Record) -> Result<NewItem> {
    check_count(path, line, record.answers.len())?;
    let id = record.id.unwrap_or(name);
    let prompt = match record.prompt {
        Prompt::Text(text) => vec![ChatMessage::user(text)],
        Prompt::Messages(messages) => messages,
    };
    let answers: Vec<NewAnswer> =
        record.answers.into_iter().enumerate().map(|(at, one)| answer(&id, at, one)).collect();
    let mut gold = None;
    for (rank, group) in (1..).zip(record.gold_order.unwrap_or_default()) {
        let indices = match group {
            Group::One(index) => vec![index],
            Group::Tied(indices) => indices,
        };
        for index in indices {
            let Some(answer) = answers.get(index) else {
                let problem = format!("\"gold_order\" names the answer {index}; there are {}", answers.len());
                return Err(wrong(path, line, problem));
            };
            gold.get_or_insert_with(Ranks::new).insert(answer.id.clone(), rank);
        }
    }
    let source = record.source.unwrap_or_else(|| path.display().to_string());
    Ok(NewItem { id, prompt, source, gold_order: gold, answers })
}

fn answer(item: &str, index: usize, answer: Answer) -> NewAnswer {
    let name = answer_id(item, index);
    match answer {
        Answer::Text(text) => NewAnswer::text(name, text),
        Answer::Full(full) => {
            let FullAnswer { id, text, token_ids, checkpoint, sampling, seed, finish } = *full;
            NewAnswer { id: id.unwrap_or(name), text, token_ids, checkpoint, sampling, seed, finish }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn import(content: &str) -> Result<(tempfile::TempDir, Store, Added)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.jsonl");
        std::fs::write(&path, content).unwrap();
        let store = Store::open(dir.path().join("votes.sqlite"))?;
        import_items(&store, &path)?;
        let again = import_items(&store, &path)?;
        Ok((dir, store, again))
    }

    #[test]
    fn items_are_read_once_with_texts_or_objects() {
        let content = r#"{"prompt": "q", "answers": ["x", "y"]}
{"id": "two", "prompt": [{"role": "user", "content": "q"}], "answers": [{"text": "x", "checkpoint": "m", "seed": 7}, {"id": "b", "text": "y"}, "z"], "gold_order": [2, [0, 1]], "source": "s"}
"#;
        let (_dir, store, again) = import(content).unwrap();
        assert_eq!(again, Added { added: 0, present: 2 });
        let items: Vec<NewItem> = store.items().unwrap().into_iter().map(|item| item.item).collect();
        assert_eq!((items[0].id.as_str(), items[1].id.as_str()), ("data-0000001", "two"));
        assert_eq!(items[0].prompt, items[1].prompt);
        assert_eq!(items[1].answers.iter().map(|answer| answer.text.as_str()).collect::<String>(), "xyz");
        assert_eq!((items[1].answers[0].seed, items[1].answers[0].checkpoint.as_deref()), (Some(7), Some("m")));
        let gold = items[1].gold_order.as_ref().unwrap();
        let ranks: Vec<u32> = items[1].answers.iter().map(|answer| gold[&answer.id]).collect();
        assert_eq!(ranks, [2, 2, 1]);
    }

    #[test]
    fn errors_name_the_file_the_line_and_the_form() {
        for (content, part) in [
            ("{\"prompt\": \"q\", \"answers\": [\"x\"]}\n{\"prompt\": \"q\"}", "line 2: missing field `answers`"),
            (r#"{"prompt": "q", "answers": ["x"], "mood": 1}"#, "unknown field `mood`"),
            (r#"{"prompt": "q", "answers": []}"#, "line 1: has 0 answers; it must have 1 to 9"),
            (r#"{"prompt": "q", "answers": ["x", "y"], "gold_order": [0, 2]}"#, "names the answer 2; there are 2"),
        ] {
            let error = import(content).unwrap_err();
            assert!(error.to_string().contains(part) && error.to_string().contains("data.jsonl"), "{error}");
            assert!(error.is_callers_fault());
        }
    }
}
