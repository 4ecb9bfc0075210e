//! Labelled answers: one answer to a prompt, which is good or bad.

use std::path::Path;

use llm_tokenizer::ChatMessage;
use serde_json::{Map, Value};

use super::{Ranking, usable};
use crate::conversation::{nothing_in, prompt_key, side, spoken};
use crate::rows::{IgnoredKeys, ReadOptions, RowError, for_each_row, refuse_columns, shortened};
use crate::split::{Duplicates, ItemKeys, Keyed, SplitKey};
use crate::value::kind;
use crate::{Result, Warnings};

/// An answer to a prompt, and whether it is good: an unpaired preference, the data of KTO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelledAnswer {
    /// The messages before the answer.
    pub prompt: Vec<ChatMessage>,
    /// The answer.
    pub answer: String,
    /// Whether the answer is good.
    pub label: bool,
}

impl Keyed for LabelledAnswer {
    fn keys(&self) -> ItemKeys {
        let label = if self.label { "good" } else { "bad" };
        let prompt: Vec<_> = self.prompt.iter().map(ChatMessage::text).collect();
        let words = prompt.iter().map(AsRef::as_ref).chain([self.answer.as_str(), label]);
        ItemKeys { prompt: prompt_key(&self.prompt), whole: SplitKey::of(words) }
    }

    fn texts(&self) -> Vec<String> {
        vec![format!("{}\n{}", spoken(&self.prompt), self.answer)]
    }
}

/// The labelled answers of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelledAnswers {
    /// The answers, in the order of the file; those of a ranking best first.
    pub answers: Vec<LabelledAnswer>,
    /// Problems that are not errors.
    pub warnings: Warnings,
}

/// Reads labelled answers from a file or a folder of files, in the formats of [`super::read_rankings`]. Supported forms of a row:
///
/// - `{"prompt", "completion", "label"}`, both strings or lists of messages (TRL). The label is true, false, 1 or 0;
/// - a ranking, as in [`super::read_rankings`]: the answers that none is better than are good, those that none is worse than are
///   bad, and the others are left out.
///
/// An empty answer is left out and counted.
pub fn read_labelled_answers(path: impl AsRef<Path>, options: &ReadOptions) -> Result<LabelledAnswers> {
    let path = path.as_ref();
    let (mut answers, mut warnings) = (Vec::new(), Warnings::default());
    for_each_row(path, options, &mut warnings, &mut |value, warnings| {
        match value.as_object().filter(|object| object.contains_key("label")) {
            Some(object) => {
                let answer = labelled(object, &mut warnings.ignored_keys)?;
                let empty = answer.answer.trim().is_empty();
                warnings.empty_labelled += usize::from(empty);
                answers.extend((!empty).then_some(answer));
            }
            None => answers.extend(usable(value, options, warnings)?.into_iter().flat_map(unpaired)),
        }
        Ok(())
    })?;
    if answers.is_empty() {
        return Err(nothing_in(path, "contains no labelled answers", &warnings));
    }
    warnings.duplicates = Duplicates::within(answers.iter().map(Keyed::keys));
    Ok(LabelledAnswers { answers, warnings })
}

/// `{"prompt", "completion", "label"}`.
fn labelled(object: &Map<String, Value>, ignored_keys: &mut IgnoredKeys) -> Result<LabelledAnswer, RowError> {
    let label = match &object["label"] {
        Value::Bool(label) => *label,
        Value::Number(number) if number.as_f64() == Some(1.) => true,
        Value::Number(number) if number.as_f64() == Some(0.) => false,
        other => return Err(format!("\"label\" is {}; it must be true or false", shortened(other)).into()),
    };
    let mut others = object.clone();
    others.remove("label");
    refuse_columns(&others)?;
    let mut prompt = side(object, "prompt", "user", ignored_keys)?;
    let mut completion = side(object, "completion", "assistant", ignored_keys)?;
    let Some(answer) = completion.pop().filter(|message| message.role() == "assistant") else {
        return Err("\"completion\" must end with an assistant message".to_owned().into());
    };
    if let Some(key) = answer.fields().keys().find(|key| !["role", "content"].contains(&key.as_str())) {
        return Err(RowError::Refused(format!("\"{key}\" of a labelled answer is not supported; remove such rows")));
    }
    prompt.extend(completion);
    if prompt.is_empty() {
        return Err(format!("\"prompt\" is {}; it must contain at least one message", kind(&object["prompt"])).into());
    }
    let known = ["id", "prompt", "completion", "label"];
    let unknown = others.iter().filter(|(key, value)| !known.contains(&key.as_str()) && !value.is_null());
    ignored_keys.extend(unknown.map(|(key, _)| key.clone()));
    Ok(LabelledAnswer { prompt, answer: answer.text().into_owned(), label })
}

/// The best and the worst answers of a ranking.
fn unpaired(ranking: Ranking) -> Vec<LabelledAnswer> {
    let pairs = ranking.pairs();
    let in_pair = |index: usize| (pairs.iter().any(|p| p.0 == index), pairs.iter().any(|p| p.1 == index));
    let labelled = |&index: &usize| {
        let (better, worse) = in_pair(index);
        (better != worse).then(|| LabelledAnswer {
            prompt: ranking.prompt.clone(),
            answer: ranking.answers[index].clone(),
            label: better,
        })
    };
    ranking.order.iter().flatten().filter_map(labelled).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &str) -> Result<LabelledAnswers> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.jsonl");
        std::fs::write(&path, content).unwrap();
        read_labelled_answers(&path, &ReadOptions { strict: true, ..ReadOptions::default() })
    }

    #[test]
    fn labels_and_pairs_give_the_same_answers() {
        let answer = |answer: &str, label| LabelledAnswer {
            prompt: vec![ChatMessage::user("q")],
            answer: answer.to_owned(),
            label,
        };
        let expected = [answer("good", true), answer("bad", false)];
        for content in [
            r#"{"prompt": "q", "completion": "good", "label": true}
               {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "bad"}], "label": 0}"#,
            r#"{"prompt": "q", "chosen": "good", "rejected": "bad"}"#,
            r#"{"prompt": "q", "answers": ["bad", "fair", "good"], "order": [2, 1, 0]}"#,
        ] {
            assert_eq!(read(&content.replace("\n               ", "\n")).unwrap().answers, expected, "{content}");
        }
        let tied = read(r#"{"prompt": "q", "answers": ["a", "b", "c"], "order": [[2, 1], 0]}"#).unwrap().answers;
        assert_eq!(
            tied.iter().map(|a| (a.answer.as_str(), a.label)).collect::<Vec<_>>(),
            [("c", true), ("b", true), ("a", false)]
        );
    }

    #[test]
    fn empty_answers_are_counted_and_unknown_keys_named() {
        let rows = [
            r#"{"prompt": "q", "completion": " ", "label": false}"#,
            r#"{"prompt": "q", "completion": "a", "label": false, "score": 3}"#,
        ];
        let found = read(&rows.join("\n")).unwrap();
        assert_eq!((found.answers.len(), found.warnings.empty_labelled), (1, 1));
        assert_eq!(found.warnings.ignored_keys, ["score".to_owned()].into());
        let lines = found.warnings.lines();
        assert!(lines.iter().any(|line| line == "1 of 2 records are left out: their answer is empty"), "{lines:?}");
    }

    #[test]
    fn errors_name_the_key() {
        for (row, part) in [
            (r#"{"prompt": "q", "completion": "a", "label": "yes"}"#, r#""label" is "yes"; it must be true or false"#),
            (r#"{"prompt": "q", "completion": [], "label": true}"#, "must end with an assistant message"),
            (r#"{"prompt": [], "completion": "a", "label": true}"#, "\"prompt\" is a list"),
            (r#"{"prompt": "q", "completion": "a", "label": true, "weight": 2}"#, "\"weight\" of a row is 2"),
            (r#"{"prompt": "q", "completion": "a"}"#, "is not a ranking"),
        ] {
            let message = read(row).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
