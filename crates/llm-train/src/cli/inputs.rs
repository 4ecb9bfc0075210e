//! Where the inputs of a recorded run are now.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::Error;
use crate::run::Record;

/// The current paths of a run's inputs.
pub(super) struct InputPaths<'a> {
    run: &'a Path,
    all: BTreeMap<String, PathBuf>,
}

impl<'a> InputPaths<'a> {
    /// The inputs of the run in `run`, some of them with a new path. `is_changed`: the run is extended, so all inputs must exist.
    pub fn of(run: &'a Path, given: &[(String, String)], is_changed: bool, record: &Record) -> Result<Self, Error> {
        if let Some((name, _)) = given.iter().find(|(name, _)| !record.inputs.contains_key(name)) {
            let known: Vec<&str> = record.inputs.keys().map(String::as_str).collect();
            return Err(Error::BadRequest(format!(
                "--input {name}: the run has no such input; its inputs are {}",
                known.join(", ")
            )));
        }
        let mut all = BTreeMap::new();
        for (name, recorded) in &record.inputs {
            let given = given.iter().rev().find(|(given, _)| given == name).map(|(_, path)| PathBuf::from(path));
            // A finished run that is not extended does not need its inputs.
            let path = given.map_or_else(|| recorded.find(name, run), Ok);
            all.insert(
                name.clone(),
                path.or_else(|e| {
                    if !is_changed && crate::run::is_finished(run) { Ok(recorded.path.clone()) } else { Err(e) }
                })?,
            );
        }
        Ok(Self { run, all })
    }

    /// The inputs of the run's stage.
    pub fn inputs<I: DeserializeOwned>(&self) -> Result<I, Error> {
        // `data_2` is the second path of `data`.
        let mut grouped: BTreeMap<&str, Vec<&Path>> = BTreeMap::new();
        let number = |name: &str| name.rsplit_once('_').and_then(|(_, number)| number.parse().ok()).unwrap_or(1);
        let mut all: Vec<(&String, &PathBuf)> = self.all.iter().collect();
        all.sort_by_key(|(name, _)| number(name));
        for (name, path) in all {
            let field =
                if number(name) > 1 { name.rsplit_once('_').map_or(name.as_str(), |(field, _)| field) } else { name };
            grouped.entry(field).or_default().push(path);
        }
        let value =
            |paths: Vec<&Path>| if paths.len() == 1 { serde_json::json!(paths[0]) } else { serde_json::json!(paths) };
        let object: serde_json::Map<_, _> =
            grouped.into_iter().map(|(field, paths)| (field.to_owned(), value(paths))).collect();
        let inputs = serde_json::from_value(object.into());
        inputs.map_err(|e| Error::BadFile(format!("{}/recipe.toml: [inputs]: {e}", self.run.display())))
    }
}
