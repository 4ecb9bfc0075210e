//! `recipe.toml`: everything needed to repeat or resume a run.
//!
//! It contains the recipe, `[run]` (stage, program version, changes on resume) and `[inputs.NAME]` (path and content hash of each
//! input).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use llm_model::write_atomic;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::inputs::{Input, Recorded};
use crate::error::shell_word;
use crate::recipe::{self, Recipe};
use crate::{Error, Result};

/// The file.
const FILE: &str = "recipe.toml";
/// Its copy, to detect edits of the file.
const COPY: &str = ".recipe.toml";

/// The content of `recipe.toml`.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    /// The text of the file.
    text: String,
    /// The text of its copy, which differs if somebody edited the file.
    copy: Option<String>,
    path: PathBuf,
    pub run: RunTable,
    /// Inputs by name.
    pub inputs: BTreeMap<String, Recorded>,
}

/// The table `[run]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RunTable {
    /// The command of the run.
    pub stage: String,
    /// Name and version of the program that started it.
    pub program: String,
    /// Changes of the recipe on resume.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}

/// A key of the recipe that was changed on resume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Change {
    /// Number of steps done before the change.
    pub step: u64,
    /// The key.
    pub key: String,
    /// Its old value; `None`: the key was missing.
    pub from: Option<Value>,
    /// Its new value.
    pub to: Option<Value>,
}

/// Name and version of this program, as in `recipe.toml`.
const PROGRAM: &str = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));

impl Record {
    /// Reads the `recipe.toml` of a run's folder; it is an error if there is none.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let shown = dir.display();
        if !dir.exists() {
            let message = "no such folder, nothing to resume; check the path, or start a run without --resume";
            return Err(Error::MissingFile(format!("{shown}: {message}")));
        }
        if !path.exists() {
            if let Some(message) = runs_in(dir) {
                return Err(Error::BadRequest(format!("{shown}: {message}")));
            }
            let message = "has no recipe.toml, nothing to resume; check the path, or start a run in another folder";
            return Err(Error::MissingFile(format!("{shown}: {message}")));
        }
        let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
        let wrong = |what: String| Error::BadFile(format!("{}: {what}", path.display()));
        let mut table: Table = text.parse().map_err(|e: toml::de::Error| wrong(e.message().to_owned()))?;
        let mut part = |name: &str| {
            table.remove(name).ok_or_else(|| {
                wrong(format!("has no table [{name}], written by an incompatible version; start a new run"))
            })
        };
        let run = part("run")?.try_into().map_err(|e: toml::de::Error| wrong(format!("run: {}", e.message())))?;
        let mut inputs: BTreeMap<String, Recorded> =
            part("inputs")?.try_into().map_err(|e: toml::de::Error| wrong(format!("inputs: {}", e.message())))?;
        // Earlier versions call the validation data `held_out`.
        if let Some(validation) = inputs.remove("held_out") {
            inputs.insert("validation".to_owned(), validation);
        }
        let copy = fs::read_to_string(dir.join(COPY)).ok();
        Ok(Self { text, copy, path: path.clone(), run, inputs })
    }

    /// The recipe, with `overrides` (`key`, `value`) applied.
    pub fn recipe<R: Recipe>(&self, overrides: &[(String, String)]) -> Result<R> {
        self.check_stage::<R>()?;
        recipe::parse(&self.path.display().to_string(), &self.text, overrides)
    }

    fn check_stage<R: Recipe>(&self) -> Result<()> {
        if self.run.stage != R::STAGE {
            let (path, was) = (self.path.display(), &self.run.stage);
            return Err(Error::BadRequest(format!("{path}: this is a run of `{was}`, not of `{}`", R::STAGE)));
        }
        Ok(())
    }

    /// The differences between the recorded recipe and `recipe`. It is an error if a key may not change.
    pub fn changes<R: Recipe>(&self, recipe: &R) -> Result<Vec<Change>> {
        self.check_stage::<R>()?;
        let begun: R = match &self.copy {
            // An edit of recipe.toml counts as a change by `--set`.
            Some(copy) => recipe::parse(COPY, copy, &[])?,
            None => self.recipe(&[])?,
        };
        if self.run.program != PROGRAM {
            let (path, was) = (self.path.display(), &self.run.program);
            tracing::warn!(
                "{path}: started by {was}, this is {PROGRAM}; the result may differ from an uninterrupted run"
            );
        }
        let (was, is) = (flat(&recipe::to_table(&begun)?), flat(&recipe::to_table(recipe)?));
        let keys: std::collections::BTreeSet<&String> = was.keys().chain(is.keys()).collect();
        let differing = keys.into_iter().filter(|key| was.get(*key) != is.get(*key));
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let mut changes = Vec::new();
        for key in differing {
            let (from, to) = (was.get(key).cloned(), is.get(key).cloned());
            if !R::may_change(key, dir) {
                let show = |value: &Option<Value>| value.as_ref().map_or("missing".to_owned(), Value::to_string);
                let (path, was, is) = (self.path.display(), show(&from), show(&to));
                let may = recipe::CHANGEABLE.join(", ");
                return Err(Error::BadRequest(format!(
                    "{path}: {key} is {was} in this run, not {is}; only these keys may change on resume: {may}"
                )));
            }
            changes.push(Change { step: 0, key: key.clone(), from, to });
        }
        Ok(changes)
    }
}

impl Change {
    /// Whether it extends the run.
    pub fn lengthens(&self) -> bool {
        let number = |value: &Option<Value>| value.as_ref().and_then(Value::as_integer).unwrap_or(0);
        self.is_length() && number(&self.to) > number(&self.from)
    }

    /// Whether the key is the length of the run.
    pub fn is_length(&self) -> bool {
        ["steps", "epochs", "updates"].contains(&self.key.as_str())
    }
}

/// Writes `recipe.toml` and its copy.
pub(crate) fn write(dir: &Path, text: &str) -> Result<()> {
    write_atomic(&dir.join(FILE), text.as_bytes())?;
    Ok(write_atomic(&dir.join(COPY), text.as_bytes())?)
}

/// Describes the runs in the subfolders of `dir` and how to resume them; `None` without runs.
fn runs_in(dir: &Path) -> Option<String> {
    let folders = fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut runs: Vec<_> = folders.filter(|folder| folder.join(FILE).exists()).collect();
    runs.sort();
    let name = |run: &std::path::PathBuf| run.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (finished, open): (Vec<_>, Vec<_>) = runs.iter().partition(|run| super::is_finished(run));
    let finished = finished.into_iter().map(name).collect::<Vec<_>>().join(", ");
    let commands =
        open.iter().map(|run| format!("llm-train resume {}", shell_word(run))).collect::<Vec<_>>().join("; ");
    match (open.is_empty(), finished.is_empty()) {
        (true, true) => None,
        (true, false) => Some(format!("is not a run; the runs in it are finished: {finished}")),
        (false, true) => Some(format!("is not a run; resume the runs in it: {commands}")),
        (false, false) => Some(format!("is not a run; resume the runs in it: {commands} (finished: {finished})")),
    }
}

/// The text of `recipe.toml`.
pub(crate) fn to_text(stage: &str, recipe: Table, inputs: &[Input], dir: &Path, changes: &[Change]) -> Result<String> {
    let broken = |e: toml::ser::Error| Error::Internal(format!("the recipe cannot be written as TOML: {e}"));
    let run = RunTable { stage: stage.to_owned(), program: PROGRAM.to_owned(), changes: changes.to_vec() };
    let mut recorded = Table::new();
    for input in inputs {
        recorded.insert(input.name.clone(), Value::try_from(input.recorded(dir)?).map_err(broken)?);
    }
    let mut table = recipe;
    table.insert("run".to_owned(), Value::try_from(run).map_err(broken)?);
    table.insert("inputs".to_owned(), Value::Table(recorded));
    toml::to_string_pretty(&table).map_err(broken)
}

/// All values of a table by dotted key.
fn flat(table: &Table) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) => all.extend(flat(inner).into_iter().map(|(k, v)| (format!("{key}.{k}"), v))),
            value => drop(all.insert(key.clone(), value.clone())),
        }
    }
    all
}
