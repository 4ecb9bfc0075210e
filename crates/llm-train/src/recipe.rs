//! Recipes: TOML files with all settings of a run.
//!
//! A recipe mirrors the config struct of its stage. The built-in recipe of the stage has the defaults: a file needs only the keys
//! that differ. An unknown key is an error that suggests the nearest known key. Every key can be overridden
//! (`optimizer.learning_rate=0.001`).

use std::path::Path;

use llm_data::clean::CleanRecipe;
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::{Error, Result};

/// The settings of a stage, read from a TOML file.
pub trait Recipe: Default + Serialize + DeserializeOwned {
    /// The command that runs the stage.
    const STAGE: &'static str;

    /// The default of every key: the built-in recipe of the stage.
    fn defaults() -> Table {
        built_in_table(Self::STAGE)
    }

    /// Checks every number. Errors put `table` (empty, or ending with a dot) before the key.
    fn check(&self, table: &str) -> Result<()>;

    /// Checks every number. The error names the key, its value and the allowed range.
    fn validate(&self) -> Result<()> {
        self.check("")
    }

    /// Whether this key may change when the run in the folder `run` is resumed.
    fn may_change(key: &str, _run: &Path) -> bool {
        CHANGEABLE.contains(&key)
    }

    /// Why the stage has no key of this name, if there is more to say than that.
    fn why_not(_key: &str) -> Option<String> {
        None
    }
}

/// The keys that may change when a run is resumed.
pub(crate) const CHANGEABLE: [&str; 9] = [
    "steps",
    "epochs",
    "updates",
    "eval_every",
    "eval_batches",
    "save_every",
    "early_stop_patience",
    "optimizer.learning_rate",
    "value_optimizer.learning_rate",
];

/// The built-in recipes, by name.
const BUILT_IN: [(&str, &str); 19] = [
    ("pretrain", include_str!("../recipes/pretrain.toml")),
    ("experts", include_str!("../recipes/experts.toml")),
    ("finetune", include_str!("../recipes/finetune.toml")),
    ("reward", include_str!("../recipes/reward.toml")),
    ("ppo", include_str!("../recipes/ppo.toml")),
    ("dpo", include_str!("../recipes/dpo.toml")),
    ("kto", include_str!("../recipes/kto.toml")),
    ("grpo", include_str!("../recipes/grpo.toml")),
    ("rloo", include_str!("../recipes/rloo.toml")),
    ("gsm8k", include_str!("../recipes/gsm8k.toml")),
    ("best-of-n", include_str!("../recipes/best-of-n.toml")),
    ("expert-iteration", include_str!("../recipes/expert-iteration.toml")),
    ("distill", include_str!("../recipes/distill.toml")),
    ("compare", include_str!("../recipes/compare.toml")),
    ("teacher-logits", include_str!("../recipes/teacher-logits.toml")),
    ("compare-alignment", include_str!("../recipes/compare-alignment.toml")),
    ("compare-methods", include_str!("../recipes/compare-methods.toml")),
    ("scaling", include_str!("../recipes/scaling.toml")),
    ("lifecycle", include_str!("../recipes/lifecycle.toml")),
];

/// Reads the recipe `name`, a built-in recipe or a TOML file, and applies `overrides` (`key`, `value`).
///
/// The file can also be the `recipe.toml` of an earlier run; its tables `[run]` and `[inputs]` are ignored.
pub fn read<R: Recipe>(name: &str, overrides: &[(String, String)]) -> Result<R> {
    let path = Path::new(name);
    let text = match built_in(name) {
        Some(text) => text.to_owned(),
        None if path.exists() => std::fs::read_to_string(path).map_err(Error::io(path))?,
        None => return Err(no_such_recipe(name)),
    };
    parse(name, &text, overrides)
}

fn built_in(name: &str) -> Option<&'static str> {
    BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// The table of a built-in recipe. A test parses all of them.
pub(crate) fn built_in_table(name: &str) -> Table {
    built_in(name).and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// [`Recipe::defaults`] as a recipe: what `Default` of each recipe returns.
pub(crate) fn default<R: Recipe>() -> R {
    match Value::Table(R::defaults()).try_into() {
        Ok(recipe) => recipe,
        // The text is part of the program, and a test reads it.
        Err(error) => unreachable!("the built-in recipe \"{}\": {error}", R::STAGE),
    }
}

/// Puts the values of `from` into `into`; those of a table are merged with the table of the same name.
pub(crate) fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(into)), Value::Table(from)) if !VARIANTS.contains(&key.as_str()) => merge(into, from),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

/// Keys whose tables are one of several variants, such as `{ subtract = 1.0 }`: a new value replaces the whole table.
const VARIANTS: [&str; 1] = ["missing_eos"];

/// Earlier versions call the validation split `held_out`.
fn rename_old_keys(table: &mut Table) {
    for (_, value) in table.iter_mut() {
        if let Value::Table(inner) = value {
            rename_old_keys(inner);
        }
    }
    if let Some(share) = table.remove("held_out_share") {
        table.insert("validation_share".to_owned(), share);
    }
}

fn no_such_recipe(name: &str) -> Error {
    let known = BUILT_IN.map(|(known, _)| known).join(", ");
    Error::MissingFile(format!("{name}: no such recipe; give a TOML file or one of {known}"))
}

/// The text of a built-in recipe, or, without a name, the list of their names.
pub(crate) fn built_in_recipe(name: Option<&str>) -> Result<String> {
    match name {
        Some(name) => {
            let text = built_in(name).or_else(|| CleanRecipe::built_in(name));
            text.map(str::to_owned).ok_or_else(|| no_such_recipe(name))
        }
        None => {
            let names = BUILT_IN.map(|(known, _)| known).join("\n");
            let cleaning: Vec<&str> = CleanRecipe::names().collect();
            Ok(format!("{names}\nFor clean: {}\nPrint one with: llm-train recipe NAME\n", cleaning.join(", ")))
        }
    }
}

/// Parses and checks a recipe; errors name `origin`.
pub(crate) fn parse<R: Recipe>(origin: &str, text: &str, overrides: &[(String, String)]) -> Result<R> {
    let syntax = |e: toml::de::Error| Error::BadFile(format!("{origin}: {}", one_line(&e)));
    let mut given: Table = text.parse().map_err(syntax)?;
    // Written by a run into its `recipe.toml`.
    given.remove("inputs");
    given.remove("run");
    rename_old_keys(&mut given);
    let mut table = R::defaults();
    merge(&mut table, given);
    for (key, text) in overrides {
        set(&mut table, &key.replace("held_out_share", "validation_share"), value(key, text)?)?;
    }
    let recipe: R = serde_path_to_error::deserialize(Value::Table(table))
        .map_err(|e| Error::BadFile(format!("{origin}: {}", describe::<R>(&e))))?;
    recipe.validate()?;
    Ok(recipe)
}

/// Parses a TOML value; anything else is a string, so that `--set optimizer.schedule=linear` needs no quotes.
fn value(key: &str, text: &str) -> Result<Value> {
    if text.parse::<i64>().is_err() && text.parse::<i128>().is_ok() {
        return Err(Error::BadRequest(format!("{key} is {text}; it must be a whole number from 0 to {}", i64::MAX)));
    }
    let value = format!("v = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("v"));
    Ok(value.unwrap_or_else(|| Value::String(text.to_owned())))
}

fn set(table: &mut Table, key: &str, value: Value) -> Result<()> {
    let (mut table, mut rest) = (table, key);
    while let Some((head, tail)) = rest.split_once('.') {
        let entry = table.entry(head).or_insert_with(|| Value::Table(Table::new()));
        table =
            entry.as_table_mut().ok_or_else(|| Error::BadRequest(format!("--set {key}: \"{head}\" is not a table")))?;
        rest = tail;
    }
    table.insert(rest.to_owned(), value);
    Ok(())
}

fn one_line(error: &toml::de::Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The message in one line, with the key. For an unknown key it suggests a similar key of any table of the recipe, if there is one.
fn describe<R: Recipe>(error: &serde_path_to_error::Error<toml::de::Error>) -> String {
    let path = error.path().to_string();
    let message = error.inner().message();
    // An unknown key, then the known ones.
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if !message.contains("unknown field") || quoted.len() < 2 {
        let message = in_words_of_toml(message);
        return format!("\"{path}\": {}", message.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    let (table, name) = path.rsplit_once('.').unwrap_or(("", &path));
    if let Some(why) = R::why_not(name) {
        return why;
    }
    let hint = similar_key::<R>(table, name).map_or(String::new(), |key| format!("; did you mean \"{key}\"?"));
    format!("unknown key \"{path}\"{hint} (keys: {})", quoted[1..].join(", "))
}

/// An error about the type of a value, with the types of TOML instead of those of Rust.
fn in_words_of_toml(message: &str) -> String {
    let (wrong, rust) = message.split_once(", expected ").unwrap_or((message, ""));
    let expected = match rust {
        "" => return message.to_owned(),
        "u64" | "usize" => format!("a whole number from 0 to {}", i64::MAX),
        "f64" | "f32" => "a number".to_owned(),
        "a sequence" => "a list such as [\"a\", \"b\"]".to_owned(),
        _ if rust.starts_with("struct ") => "a table".to_owned(),
        _ => rust.to_owned(),
    };
    format!("{wrong}, expected {expected}")
}

/// The key whose last part is most similar to `name`: they differ in at most a third of their letters, or `name` is the initials of
/// its words, as `lr` for `learning_rate`. Among equally similar keys it is the one in `table`, else the one with the fewest parts.
fn similar_key<R: Recipe>(table: &str, name: &str) -> Option<String> {
    fn collect(table: &Table, prefix: &str, keys: &mut Vec<String>) {
        for (key, value) in table {
            keys.push(format!("{prefix}{key}"));
            if let Value::Table(table) = value {
                collect(table, &format!("{prefix}{key}."), keys);
            }
        }
    }
    let mut keys = Vec::new();
    collect(&every_key::<R>().ok()?, "", &mut keys);
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let is_initials = |words: &str| {
        words.contains('_')
            && words.split('_').map(|word| word.get(..1).unwrap_or_default()).collect::<String>() == name
    };
    let distance = |key: &str| match last(key) {
        words if is_initials(&words) => 0,
        words => strsim::damerau_levenshtein(name, &words),
    };
    let is_near = |key: &String| 3 * distance(key) <= name.len().max(last(key).len());
    let elsewhere = |key: &str| key.rsplit_once('.').map_or("", |(parent, _)| parent) != table;
    keys.into_iter().filter(is_near).min_by_key(|key| (distance(key), elsewhere(key), key.matches('.').count()))
}

/// A recipe with all tables, also with `[lora]` if the stage has it, which no default recipe contains.
fn every_key<R: Recipe>() -> Result<Table> {
    let mut with_lora = R::defaults();
    with_lora.insert("lora".to_owned(), Value::Table(Table::new()));
    to_table(&Value::Table(with_lora).try_into::<R>().unwrap_or_default())
}

/// The recipe as a table.
pub(crate) fn to_table<R: Serialize>(recipe: &R) -> Result<Table> {
    Table::try_from(recipe).map_err(|e| Error::Internal(format!("the recipe cannot be written as TOML: {e}")))
}

#[cfg(test)]
pub(crate) fn override_recipe<R: Recipe>(recipe: &R, overrides: &[(String, String)]) -> Result<R> {
    parse("test", &to_table(recipe)?.to_string(), overrides)
}

#[cfg(test)]
mod tests;
