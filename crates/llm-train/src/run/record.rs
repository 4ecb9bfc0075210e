//! `recipe.toml`: all that is needed to run a stage again, or to go on with it.
//!
//! Besides the recipe it holds `[run]`, the stage and the program's version with what was changed on the way, and `[inputs.NAME]`,
//! each input's path and the fingerprint of its content.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::inputs::{Input, Recorded};
use crate::recipe::{self, Recipe};
use crate::{Error, Result};

/// What `recipe.toml` says.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    /// The text of the file.
    text: String,
    path: PathBuf,
    pub run: RunTable,
    /// By name.
    pub inputs: BTreeMap<String, Recorded>,
}

/// The table `[run]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RunTable {
    /// The command that began the run.
    pub stage: String,
    /// The program that did.
    pub program: String,
    /// What was changed when the run was resumed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}

/// A key of the recipe that was changed when the run was resumed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Change {
    /// Steps that were done by then.
    pub step: u64,
    /// The key.
    pub key: String,
    /// Its value before; none: the key was not there.
    pub from: Option<Value>,
    /// Its value since.
    pub to: Option<Value>,
}

/// This program, as `recipe.toml` names it.
const PROGRAM: &str = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));

impl Record {
    /// Reads the `recipe.toml` of a run's folder. Where there is none, there is nothing to resume.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("recipe.toml");
        let shown = dir.display();
        if !dir.exists() {
            let message =
                "no such folder, so there is nothing to resume; check the path, or begin a run without --resume";
            return Err(Error::Input(format!("{shown}: {message}")));
        }
        if !path.exists() {
            let message =
                "holds no recipe.toml, so there is nothing to resume; check the path, or begin a run elsewhere";
            return Err(Error::Input(format!("{shown}: {message}")));
        }
        let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
        let wrong = |what: String| Error::Input(format!("{}: {what}", path.display()));
        let mut table: Table = text.parse().map_err(|e: toml::de::Error| wrong(e.message().to_owned()))?;
        let mut part = |name: &str| {
            table.remove(name).ok_or_else(|| {
                wrong(format!(
                    "has no table [{name}]; this run was not begun by this version of the program, begin it anew"
                ))
            })
        };
        let run = part("run")?.try_into().map_err(|e: toml::de::Error| wrong(format!("run: {}", e.message())))?;
        let inputs =
            part("inputs")?.try_into().map_err(|e: toml::de::Error| wrong(format!("inputs: {}", e.message())))?;
        Ok(Self { text, path: path.clone(), run, inputs })
    }

    /// The recipe, with `overrides` (`key`, `value`) applied.
    pub fn recipe<R: Recipe>(&self, overrides: &[(String, String)]) -> Result<R> {
        recipe::parse(&self.path.display().to_string(), &self.text, overrides)
    }

    /// The keys in which `recipe` differs from this run's; an error names one that may not.
    pub fn changes<R: Recipe>(&self, recipe: &R) -> Result<Vec<Change>> {
        if self.run.stage != R::STAGE {
            let (path, was) = (self.path.display(), &self.run.stage);
            return Err(Error::Input(format!("{path}: the run was begun by `{was}`; it is no run of `{}`", R::STAGE)));
        }
        if self.run.program != PROGRAM {
            let (path, was) = (self.path.display(), &self.run.program);
            tracing::warn!("{path}: begun by {was}, this is {PROGRAM}; the result may differ from that of one program");
        }
        let (was, is) = (flat(&recipe::to_table(&self.recipe::<R>(&[])?)?), flat(&recipe::to_table(recipe)?));
        let keys: std::collections::BTreeSet<&String> = was.keys().chain(is.keys()).collect();
        let differing = keys.into_iter().filter(|key| was.get(*key) != is.get(*key));
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let mut changes = Vec::new();
        for key in differing {
            let (from, to) = (was.get(key).cloned(), is.get(key).cloned());
            if !R::may_change(key, dir) {
                let show = |value: &Option<Value>| value.as_ref().map_or("not there".to_owned(), Value::to_string);
                let (path, was, is) = (self.path.display(), show(&from), show(&to));
                let may = recipe::CHANGEABLE.join(", ");
                return Err(Error::Input(format!(
                    "{path}: {key} is {was} in this run, you ask for {is}; a run that goes on may change only {may}"
                )));
            }
            changes.push(Change { step: 0, key: key.clone(), from, to });
        }
        Ok(changes)
    }
}

impl Change {
    /// Whether it makes the run longer.
    pub fn lengthens(&self) -> bool {
        let number = |value: &Option<Value>| value.as_ref().and_then(Value::as_integer).unwrap_or(0);
        self.is_length() && number(&self.to) > number(&self.from)
    }

    /// Whether the key says how long the run is.
    pub fn is_length(&self) -> bool {
        ["steps", "epochs", "updates"].contains(&self.key.as_str())
    }
}

/// The text of `recipe.toml`.
pub(crate) fn to_text(stage: &str, recipe: Table, inputs: &[Input], dir: &Path, changes: &[Change]) -> Result<String> {
    let broken = |e: toml::ser::Error| Error::Input(format!("the recipe cannot be written as TOML: {e}"));
    let run = RunTable { stage: stage.to_owned(), program: PROGRAM.to_owned(), changes: changes.to_vec() };
    let mut recorded = Table::new();
    for input in inputs {
        recorded.insert(input.name.to_owned(), Value::try_from(input.recorded(dir)?).map_err(broken)?);
    }
    let mut table = recipe;
    table.insert("run".to_owned(), Value::try_from(run).map_err(broken)?);
    table.insert("inputs".to_owned(), Value::Table(recorded));
    toml::to_string_pretty(&table).map_err(broken)
}

/// Every value of a table by its dotted key.
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
