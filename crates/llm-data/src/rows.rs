//! Rows of training data: the names of their columns, and rows that cannot be used.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value};

use crate::records::{Limit, for_each_record};
use crate::value::kind;
use crate::{Error, Result, Warnings};

/// How the rows of a file are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// The file's name of a column, by the name that this crate reads, such as `prompt = "question_text"`. `role` and `content` are
    /// the keys of messages.
    pub columns: BTreeMap<String, String>,
    /// Columns of the file that are not read, even if they would change what is trained on.
    pub ignored_columns: Vec<String>,
    /// Whether a broken row is an error. Otherwise it is left out and counted.
    pub strict: bool,
    /// Whether rankings in which all answers are tied are kept.
    pub keep_ties: bool,
    /// Whether rankings are kept that compare answers by a quality only (`heads`, `grades`).
    pub keep_heads: bool,
}

/// The names that [`ReadOptions::columns`] may give to columns.
const NAMES: [&str; 27] = [
    "answer",
    "answers",
    "chat_template_kwargs",
    "chosen",
    "completion",
    "content",
    "conversations",
    "documents",
    "grades",
    "history",
    "id",
    "input",
    "instruction",
    "label",
    "margin",
    "messages",
    "order",
    "output",
    "prompt",
    "question",
    "ranks",
    "rejected",
    "role",
    "system",
    "text",
    "tools",
    "weight",
];

/// Columns that contain messages.
const MESSAGE_LISTS: [&str; 6] = ["messages", "conversations", "prompt", "completion", "chosen", "rejected"];

/// Why a row cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RowError {
    /// This row is wrong; the others may be right.
    Broken(String),
    /// A column changes what must be trained on and is not supported: the file must not be used as it is.
    Refused(String),
}

impl RowError {
    /// The error with this text before its message.
    pub fn within(self, place: &str) -> Self {
        match self {
            Self::Broken(message) => Self::Broken(format!("{place}: {message}")),
            Self::Refused(message) => Self::Refused(format!("{place}: {message}")),
        }
    }
}

impl From<String> for RowError {
    fn from(message: String) -> Self {
        Self::Broken(message)
    }
}

/// Names of columns and of keys of messages that are not read.
pub(crate) type IgnoredKeys = BTreeSet<String>;

/// Calls `each` with every row of a file or folder, with its columns renamed. Counts records and broken rows.
pub(crate) fn for_each_row(
    path: &Path,
    options: &ReadOptions,
    warnings: &mut Warnings,
    each: &mut dyn FnMut(&Value, &mut Warnings) -> Result<(), RowError>,
) -> Result<()> {
    if let Some(unknown) = options.columns.keys().find(|name| !NAMES.contains(&name.as_str())) {
        return Err(Error::Columns { message: format!("\"{unknown}\" is not one of {}", NAMES.join(", ")) });
    }
    let mut found = BTreeSet::new();
    for_each_record(path, Limit::Rows, &mut |place, record| {
        warnings.records += 1;
        let row = record.map_err(RowError::Broken).and_then(|mut value| {
            if let Some(object) = value.as_object_mut() {
                rename(object, options, &mut found);
            }
            each(&value, warnings)
        });
        match row {
            Ok(()) => Ok(()),
            Err(RowError::Broken(message)) if !options.strict => {
                warnings.broken.push(Error::Record { place, message });
                Ok(())
            }
            Err(RowError::Broken(message) | RowError::Refused(message)) => Err(Error::Record { place, message }),
        }
    })?;
    match options.columns.iter().find(|(_, theirs)| warnings.records > 0 && !found.contains(*theirs)) {
        Some((ours, theirs)) => Err(Error::Columns {
            message: format!("{ours} = \"{theirs}\", but no row of {} has the column \"{theirs}\"", path.display()),
        }),
        None => Ok(()),
    }
}

/// Renames the columns, removes those to ignore, and adds the names of the found columns to `found`.
fn rename(object: &mut Map<String, Value>, options: &ReadOptions, found: &mut BTreeSet<String>) {
    object.retain(|key, _| !options.ignored_columns.contains(key));
    let is_of_messages = |name: &str| ["role", "content"].contains(&name);
    let (in_messages, columns): (Vec<_>, Vec<_>) = options.columns.iter().partition(|(ours, _)| is_of_messages(ours));
    // All are taken out before one is put back, so that names can be exchanged.
    let taken = columns.into_iter().filter_map(|(ours, theirs)| Some((ours, theirs, object.shift_remove(theirs)?)));
    for (ours, theirs, value) in taken.collect::<Vec<_>>() {
        found.insert(theirs.clone());
        object.insert(ours.clone(), value);
    }
    if in_messages.is_empty() {
        return;
    }
    let lists = MESSAGE_LISTS.iter().filter_map(|name| object.get(*name)?.as_array().map(|_| *name));
    for name in lists.collect::<Vec<_>>() {
        for message in object[name].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            for (ours, theirs) in &in_messages {
                if let Some(value) = message.shift_remove(*theirs) {
                    found.insert((*theirs).clone());
                    message.insert((*ours).clone(), value);
                }
            }
        }
    }
}

/// Returns an error for columns that change what must be trained on and that this crate does not support.
pub(crate) fn refuse_columns(object: &Map<String, Value>) -> Result<(), RowError> {
    let hint = "or name it in the recipe's data.ignored_columns";
    if let Some(label) = object.get("label").filter(|label| !label.is_null()) {
        return Err(RowError::Refused(format!(
            "\"label\" is {}: rows with a label are unpaired preferences (KTO), and training on the bad answers would teach \
             them; keep the rows with good answers and remove the column, {hint}",
            shortened(label)
        )));
    }
    for key in ["weight", "train", "trainable", "loss"] {
        let Some(value) = object.get(key).filter(|value| !value.is_null()) else { continue };
        if value.as_bool() != Some(true) && value.as_f64() != Some(1.) {
            return Err(RowError::Refused(format!(
                "\"{key}\" of a row is {}; all rows have the weight 1; remove rows that must not be trained on, set \"train\" \
                 of their messages to false, {hint}",
                shortened(value)
            )));
        }
    }
    refuse_media(object)
}

/// Returns an error for keys of a row or message with images and the like.
pub(crate) fn refuse_media(object: &Map<String, Value>) -> Result<(), RowError> {
    for key in ["functions", "images", "image", "videos", "video", "audios", "audio"] {
        if object.get(key).is_some_and(is_set) {
            return Err(RowError::Refused(format!(
                "\"{key}\" is not supported; remove such rows, or name it in the recipe's data.ignored_columns if the text does not \
                 need it"
            )));
        }
    }
    Ok(())
}

/// Whether a value says something: not null, nor an empty text, list or object, nor the JSON of one of these.
pub(crate) fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !matches!(text.trim(), "" | "[]" | "null"),
        Value::Array(list) => !list.is_empty(),
        Value::Object(object) => !object.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

/// The objects of a column: a list of objects, or its JSON as a text. `None` if it is null or empty.
pub(crate) fn objects(object: &Map<String, Value>, key: &str) -> Result<Option<Vec<Value>>, RowError> {
    let Some(value) = object.get(key).filter(|value| is_set(value)) else { return Ok(None) };
    let parsed = value.as_str().map(serde_json::from_str::<Value>);
    let wrong = |is: &str| format!("\"{key}\" is {is}; it must be a list of objects, or its JSON as a text");
    let value = match parsed {
        Some(Ok(value)) => value,
        Some(Err(error)) => return Err(wrong(&format!("a text that is not JSON ({error})")).into()),
        None => value.clone(),
    };
    match value {
        Value::Array(list) if list.iter().all(Value::is_object) => Ok(Some(list)),
        Value::Array(_) => Err(wrong("a list of other values").into()),
        other => Err(wrong(kind(&other)).into()),
    }
}

/// The beginning of a value as JSON, for an error message.
pub(crate) fn shortened(value: &Value) -> String {
    let text = value.to_string();
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
