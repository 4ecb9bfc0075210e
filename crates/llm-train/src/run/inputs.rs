//! Inputs of a run, identified by a hash of their content and not by their path.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A file or folder that a stage reads.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    /// The name of its option, with underscores.
    pub name: String,
    /// The path.
    pub path: PathBuf,
}

/// The record of an input in `recipe.toml`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Recorded {
    /// The path as given.
    pub path: PathBuf,
    /// The path relative to the run's folder.
    #[serde(default)]
    pub from_run: Option<PathBuf>,
    /// The name on the Hugging Face hub, `org/name@commit`, of a folder in its cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<String>,
    /// BLAKE3 hash of the content.
    pub blake3: String,
}

impl Input {
    /// The paths of a struct of inputs that are given, by field. The second and the following paths of a field that is a list are called
    /// `FIELD_2`, `FIELD_3` and so on.
    pub fn list(inputs: &impl Serialize) -> Result<Vec<Self>> {
        let value = serde_json::to_value(inputs)
            .map_err(|e| Error::BadRequest(format!("the path of an input cannot be recorded: {e}")))?;
        let mut all = Vec::new();
        for (name, value) in value.as_object().into_iter().flatten() {
            let paths = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            for (at, path) in paths.iter().enumerate() {
                let name = if at == 0 { name.clone() } else { format!("{name}_{}", at + 1) };
                all.extend(path.as_str().map(|path| Self { name, path: path.into() }));
            }
        }
        Ok(all)
    }

    /// The record of this input for a run in the existing folder `dir`.
    pub fn recorded(&self, dir: &Path) -> Result<Recorded> {
        let blake3 = fingerprint(&self.name, &self.path)?;
        let hub = llm_files::hub_name(&self.path);
        Ok(Recorded { path: self.path.clone(), from_run: path_from(dir, &self.path), hub, blake3 })
    }
}

impl Recorded {
    /// The current path of the input of the run in `dir`: one with the recorded content, or else one that exists.
    pub fn find(&self, name: &str, dir: &Path) -> Result<PathBuf> {
        let relative = self.from_run.as_ref().map(|path| dir.join(path));
        let existing: Vec<PathBuf> =
            relative.into_iter().chain([self.path.clone()]).filter(|path| path.exists()).collect();
        let has_content = |path: &&PathBuf| fingerprint(name, path).is_ok_and(|found| found == self.blake3);
        existing.iter().find(has_content).or(existing.first()).cloned().ok_or_else(|| {
            let path = self.path.display();
            let new = self.hub.as_deref().unwrap_or("PATH");
            let what = if self.hub.is_some() { "fetch it again" } else { "give its new path" };
            Error::MissingFile(format!("{path}: no such file or folder; {what} with --input {name}={new}"))
        })
    }
}

/// Returns an error if the inputs differ from the recorded ones.
pub(crate) fn compare(inputs: &[Input], recorded: &std::collections::BTreeMap<String, Recorded>) -> Result<()> {
    if let Some(name) = recorded.keys().find(|name| inputs.iter().all(|input| input.name != **name)) {
        return Err(Error::BadRequest(format!("the run was started with --{}; give it again", name.replace('_', "-"))));
    }
    for input in inputs {
        let (option, path) = (input.name.replace('_', "-"), input.path.display());
        let Some(recorded) = recorded.get(&input.name) else {
            return Err(Error::BadRequest(format!("the run was started without --{option}; leave it out")));
        };
        if fingerprint(&input.name, &input.path)? != recorded.blake3 {
            let was = recorded.path.display();
            return Err(Error::BadRequest(format!(
                "--{option} {path}: the content differs from the input the run was started with ({was}); use that one, or start a new run"
            )));
        }
    }
    Ok(())
}

/// A hash of the content of a file or folder. For a folder with a model, a tokenizer or token shards, only their files count, not
/// the logs and checkpoints in the same folder.
pub(crate) fn fingerprint(name: &str, path: &Path) -> Result<String> {
    if !path.is_dir() {
        return llm_files::checksum(path).map_err(Error::io(path));
    }
    let has = |file: &str| path.join(file).is_file();
    let is_content: fn(&str) -> bool = match () {
        () if has("manifest.json") => |file| file == "manifest.json" || file.ends_with(".bin"),
        () if name == "tokenizer" => is_tokenizer,
        () if has("config.json") || has("adapter_config.json") || has("tokenizer.json") => {
            |file| is_tokenizer(file) || is_model(file)
        }
        () => |file| !file.starts_with('.'),
    };
    let top_only =
        ["manifest.json", "config.json", "adapter_config.json", "tokenizer.json"].iter().any(|file| has(file));
    let mut files = Vec::new();
    let all = match top_only {
        true => files_of(path).map_err(Error::io(path))?,
        false => llm_files::list_files(path).map_err(Error::io(path))?,
    };
    for file in all.into_iter().filter(|file| is_content(file)) {
        let hash = llm_files::checksum(&path.join(&file)).map_err(Error::io(path.join(&file)))?;
        files.push((file, hash));
    }
    Ok(llm_files::combine_checksums(files))
}

fn is_tokenizer(file: &str) -> bool {
    let others = ["vocab.json", "merges.txt", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json"];
    file.starts_with("tokenizer") || others.contains(&file)
}

pub(super) fn is_model(file: &str) -> bool {
    file == "config.json"
        || file == "adapter_config.json"
        || file.ends_with(".safetensors")
        || file.ends_with(".safetensors.index.json")
}

/// The names of the files in a folder, including links to files.
pub(super) fn files_of(dir: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.path().is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// The relative path from the folder `from` to `to`; both exist.
fn path_from(from: &Path, to: &Path) -> Option<PathBuf> {
    let (from, to) = (from.canonicalize().ok()?, to.canonicalize().ok()?);
    let (from, to): (Vec<Component>, Vec<Component>) = (from.components().collect(), to.components().collect());
    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = std::iter::repeat_n(Component::ParentDir, from.len() - common);
    (common > 0).then(|| up.chain(to[common..].iter().copied()).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_relative_path_is_found() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("runs/a")).unwrap();
        fs::create_dir_all(dir.path().join("data/b")).unwrap();
        let path = path_from(&dir.path().join("runs/a"), &dir.path().join("data/./b")).unwrap();
        assert_eq!(path, Path::new("../../data/b"));
    }

    #[test]
    fn the_fingerprint_of_a_folder_ignores_logs_and_checkpoints() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let print = || fingerprint("model", dir.path()).unwrap();
        write("config.json", "{}");
        write("model.safetensors", "weights");
        let model = print();
        write("metrics.jsonl", "{}");
        fs::create_dir(dir.path().join("checkpoints")).unwrap();
        write("checkpoints/model.safetensors", "others");
        assert_eq!(print(), model);
        write("model.safetensors", "weighty");
        assert_ne!(print(), model);
        let tokenizer = fingerprint("tokenizer", dir.path()).unwrap();
        write("model.safetensors", "weights");
        assert_eq!(fingerprint("tokenizer", dir.path()).unwrap(), tokenizer);
        write("tokenizer.json", "{}");
        assert_ne!(fingerprint("tokenizer", dir.path()).unwrap(), tokenizer);
    }
}
