//! Documents that contain a part of an evaluation set.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::ngrams::{hash_text, window_hash};
use super::words::{simple_words, simplify};
use crate::records::{Limit, for_each_record_of_file};
use crate::source::{Format, data_files, known_format, read_text};
use crate::{Error, Result};

/// Removes documents that have n words in a row in common with an item of an evaluation set, after normalisation (Brown et al. 2020,
/// arXiv 2005.14165, appendix C).
///
/// Of an item with a question and an answer, only n-grams with a word of the answer count, because questions quote public texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Decontamination {
    /// Words in a row, default 13.
    pub ngram: usize,
    /// Files of evaluation sets (JSON, CSV, Parquet, text), or folders of them; the name of a file is the task. `--evaluation` adds
    /// to them.
    pub sets: Vec<PathBuf>,
}

impl Default for Decontamination {
    fn default() -> Self {
        Self { ngram: 13, sets: Vec::new() }
    }
}

/// Keys of the question of an item, in the forms of llm-foundry, lm-eval and the sets of the hub.
const QUESTION: [&str; 9] =
    ["context", "query", "question", "prompt", "ctx", "goal", "passage", "premise", "instruction"];
/// Keys of its answer.
const ANSWER: [&str; 9] = [
    "continuation",
    "answer",
    "choices",
    "endings",
    "completion",
    "target",
    "canonical_solution",
    "aliases",
    "solution",
];

/// The n-grams of evaluation sets.
#[derive(Debug, Clone)]
pub(super) struct Contaminants {
    n: usize,
    tasks: Vec<String>,
    /// The task of each n-gram.
    ngrams: HashMap<u64, usize>,
}

impl Contaminants {
    pub fn read(options: &Decontamination) -> Result<Self> {
        let mut found = Self { n: options.ngram, tasks: Vec::new(), ngrams: HashMap::new() };
        for path in &options.sets {
            for file in data_files(path, true)? {
                found.tasks.push(task(&file));
                if known_format(&file).is_none_or(Format::is_text) {
                    found.add(&read_text(&file)?, "");
                    continue;
                }
                for_each_record_of_file(&file, Limit::None, None, &mut |place, record| {
                    let value = record.map_err(|message| Error::Record { place, message })?;
                    found.add_item(&value);
                    Ok(())
                })?;
            }
        }
        Ok(found)
    }

    fn add_item(&mut self, item: &Value) {
        let texts = |object: &Map<String, Value>, keys: &[&str]| -> Vec<String> {
            keys.iter().filter_map(|key| object.get(*key)).flat_map(strings).collect()
        };
        let Some(object) = item.as_object() else { return };
        let (question, answers) = (texts(object, &QUESTION), texts(object, &ANSWER));
        if question.is_empty() || answers.is_empty() {
            object.values().flat_map(strings).for_each(|text| self.add("", &text));
        } else {
            let question = question.join(" ");
            answers.iter().for_each(|answer| self.add(&question, answer));
        }
    }

    /// Adds the n-grams of the two texts that have a word of the second; all of them if the first is empty.
    fn add(&mut self, question: &str, answer: &str) {
        let (question, answer) = (simplify(question), simplify(answer));
        let mut words = simple_words(&question);
        let start = (words.len() + 1).saturating_sub(self.n);
        words.extend(simple_words(&answer));
        let task = self.tasks.len().saturating_sub(1);
        let hashes: Vec<u64> = words.into_iter().skip(start).map(hash_text).collect();
        for window in hashes.windows(self.n) {
            self.ngrams.entry(window_hash(window.iter().copied())).or_insert(task);
        }
    }

    /// The first task that a text has an n-gram of, and the n-gram.
    pub fn find(&self, text: &str) -> Option<(&str, String)> {
        let simple = simplify(text);
        let words = simple_words(&simple);
        let hashes: Vec<u64> = words.iter().map(|word| hash_text(word)).collect();
        hashes.windows(self.n).enumerate().find_map(|(at, window)| {
            let task = *self.ngrams.get(&window_hash(window.iter().copied()))?;
            Some((self.tasks[task].as_str(), words[at..at + self.n].join(" ")))
        })
    }
}

/// The name of a file without its endings.
fn task(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.split('.').next().unwrap_or_default().to_owned()
}

/// The texts in a value.
fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(list) => list.iter().flat_map(strings).collect(),
        Value::Object(object) => object.values().flat_map(strings).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_with_its_question_is_found_and_the_question_alone_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str| std::fs::write(dir.path().join(name), content).unwrap();
        let question = "Which of these many old towns on the long river has the tallest tower of all?";
        write(
            "towns.jsonl",
            &format!("{{\"query\": \"{question}\", \"choices\": [\"Aldham Abbey\", \"Borton\"], \"gold\": 1}}\n"),
        );
        write(
            "pairs.jsonl",
            "{\"good\": \"one two three four five six seven eight nine ten eleven twelve thirteen fourteen\"}\n",
        );
        let options = Decontamination { sets: vec![dir.path().to_owned()], ..Decontamination::default() };
        let found = Contaminants::read(&options).unwrap();
        let task = |text: &str| found.find(text).map(|(task, _)| task.to_owned());
        assert_eq!(task(question), None);
        assert_eq!(task(&format!("x {question} ... ALDHAM abbey, of course")).as_deref(), Some("towns"));
        assert_eq!(task(&format!("{question} Nobody knows.")), None);
        let (hit, words) =
            found.find("Two, three; four five six seven eight nine ten eleven twelve thirteen FOURTEEN").unwrap();
        assert_eq!(
            (hit, words.as_str()),
            ("pairs", "two three four five six seven eight nine ten eleven twelve thirteen fourteen")
        );
        assert_eq!(task("one two three four five six seven eight nine ten eleven twelve"), None);
    }
}
