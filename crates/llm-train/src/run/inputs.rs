//! What a run reads, known by its content: a path may be spelled in many ways, and its content may change.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A file or folder that a stage reads.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    /// The option that names it.
    pub name: &'static str,
    /// Where it is.
    pub path: PathBuf,
}

/// What `recipe.toml` says of an input.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Recorded {
    /// The path as it was given.
    pub path: PathBuf,
    /// The path from the run's folder.
    #[serde(default)]
    pub from_run: Option<PathBuf>,
    /// BLAKE3 of the content.
    pub blake3: String,
}

impl Input {
    /// The input that the option `--name` gives.
    pub fn new(name: &'static str, path: &Path) -> Self {
        Self { name, path: path.to_owned() }
    }

    /// Those of several that are given.
    pub fn given<const N: usize>(all: [(&'static str, Option<&Path>); N]) -> Vec<Self> {
        all.into_iter().filter_map(|(name, path)| Some(Self::new(name, path?))).collect()
    }

    /// What a run in the folder `dir` (which exists) records of it.
    pub fn recorded(&self, dir: &Path) -> Result<Recorded> {
        let blake3 = fingerprint(self.name, &self.path)?;
        Ok(Recorded { path: self.path.clone(), from_run: path_from(dir, &self.path), blake3 })
    }
}

impl Recorded {
    /// Where the input is now, seen from the run in `dir`: the place whose content is right, or else one that exists.
    pub fn find(&self, name: &str, dir: &Path) -> Result<PathBuf> {
        let beside = self.from_run.as_ref().map(|path| dir.join(path));
        let there: Vec<PathBuf> = beside.into_iter().chain([self.path.clone()]).filter(|path| path.exists()).collect();
        let right = |path: &&PathBuf| fingerprint(name, path).is_ok_and(|found| found == self.blake3);
        there.iter().find(right).or(there.first()).cloned().ok_or_else(|| {
            let path = self.path.display();
            Error::Input(format!("{path}: no such file or folder; say where it is now by --input {name}=PATH"))
        })
    }
}

/// Refuses inputs that the run was not begun with.
pub(crate) fn compare(inputs: &[Input], recorded: &std::collections::BTreeMap<String, Recorded>) -> Result<()> {
    if let Some(name) = recorded.keys().find(|name| inputs.iter().all(|input| input.name != **name)) {
        return Err(Error::Input(format!("the run was begun with --{}; give it again", name.replace('_', "-"))));
    }
    for input in inputs {
        let (option, path) = (input.name.replace('_', "-"), input.path.display());
        let Some(recorded) = recorded.get(input.name) else {
            return Err(Error::Input(format!("the run was begun without --{option}; leave it out")));
        };
        if fingerprint(input.name, &input.path)? != recorded.blake3 {
            let was = recorded.path.display();
            return Err(Error::Input(format!(
                "--{option} {path}: its content is not what the run was begun with ({was}); give it that, or begin anew"
            )));
        }
    }
    Ok(())
}

/// A hash of the content of a file or folder. Of a folder only those files count that a model, a tokenizer or token shards are
/// made of, if it is one of these: a run's folder holds logs and checkpoints besides.
pub(crate) fn fingerprint(name: &str, path: &Path) -> Result<String> {
    if !path.is_dir() {
        return llm_files::checksum(path).map_err(Error::io(path));
    }
    let holds = |file: &str| path.join(file).is_file();
    let counts: fn(&str) -> bool = match () {
        () if holds("manifest.json") => |file| file == "manifest.json" || file.ends_with(".bin"),
        () if name == "tokenizer" => is_tokenizer,
        () if holds("config.json") || holds("tokenizer.json") => |file| is_tokenizer(file) || is_model(file),
        () => |file| !file.starts_with('.'),
    };
    let top_only = holds("manifest.json") || holds("config.json") || holds("tokenizer.json");
    let mut files = Vec::new();
    let all = match top_only {
        true => files_of(path).map_err(Error::io(path))?,
        false => llm_files::list_files(path).map_err(Error::io(path))?,
    };
    for file in all.into_iter().filter(|file| counts(file)) {
        let hash = llm_files::checksum(&path.join(&file)).map_err(Error::io(path.join(&file)))?;
        files.push((file, hash));
    }
    Ok(llm_files::combine_checksums(files))
}

fn is_tokenizer(file: &str) -> bool {
    let others = ["vocab.json", "merges.txt", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json"];
    file.starts_with("tokenizer") || others.contains(&file)
}

fn is_model(file: &str) -> bool {
    file == "config.json" || file.ends_with(".safetensors") || file.ends_with(".safetensors.index.json")
}

/// The names of the files in a folder, links to files among them.
fn files_of(dir: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.path().is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// The way from the folder `from` to `to`; both exist.
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
    fn a_path_leads_from_the_run_to_its_input() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("runs/a")).unwrap();
        fs::create_dir_all(dir.path().join("data/b")).unwrap();
        let path = path_from(&dir.path().join("runs/a"), &dir.path().join("data/./b")).unwrap();
        assert_eq!(path, Path::new("../../data/b"));
    }

    #[test]
    fn a_folder_is_known_by_what_it_is_made_of() {
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
