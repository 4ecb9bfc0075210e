//! The lock file of a data folder, `fetch.lock`: URL, length and sha256 of each file. It is written at the first fetch, and every later
//! fetch must give the same files.

use std::path::{Path, PathBuf};

use llm_cli::Failure;
use serde::{Deserialize, Serialize};

pub(crate) const NAME: &str = "fetch.lock";
const HEADER: &str = "# Written by `cargo xtask fetch-data`: what a later fetch must give. Delete the entries of a set to fetch it anew.\n\n";

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LockFile {
    #[serde(rename = "file", default)]
    pub files: Vec<Locked>,
}

/// A file that was fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Locked {
    /// The name of its set.
    pub set: String,
    /// Path in the folder of the set.
    pub path: String,
    pub url: String,
    pub bytes: u64,
    pub sha256: String,
}

impl LockFile {
    /// The lock file of a folder; an empty one if there is none.
    pub fn read(dir: &Path) -> Result<Self, Failure> {
        let path = dir.join(NAME);
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text, &path.display().to_string()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Failure::internal(format!("{}: {error}", path.display()))),
        }
    }

    /// Parses a lock file; `name` is named in errors.
    pub fn parse(text: &str, name: &str) -> Result<Self, Failure> {
        let lock: Self = toml::from_str(text).map_err(|error| Failure::input(format!("{name}: {error}")))?;
        let inside = |path: &str| path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        match lock.files.iter().find(|file| !inside(&file.path) || !inside(&file.set) || file.set.contains('/')) {
            Some(file) => Err(Failure::input(format!("{name}: {:?} is not a path in the folder of a set", file.path))),
            None => Ok(lock),
        }
    }

    /// The files of a set, if it was fetched.
    pub fn of(&self, set: &str) -> Vec<&Locked> {
        self.files.iter().filter(|file| file.set == set).collect()
    }

    /// Adds the files of a set and writes the file. The set must be complete.
    pub fn add(&mut self, dir: &Path, files: Vec<Locked>) -> Result<(), Failure> {
        self.files.extend(files);
        self.files.sort_by(|a, b| (&a.set, &a.path).cmp(&(&b.set, &b.path)));
        let path = dir.join(NAME);
        let failed = |error: String| Failure::internal(format!("{}: {error}", path.display()));
        let text = toml::to_string(self).map_err(|error| failed(error.to_string()))?;
        let write = llm_files::write_atomic(&path, |out| {
            out.write_all(HEADER.as_bytes())?;
            out.write_all(text.as_bytes())
        });
        write.map_err(|error| failed(llm_files::error_text(&error)))
    }
}

impl Locked {
    /// Where the file is in a data folder.
    pub fn in_folder(&self, dir: &Path) -> PathBuf {
        dir.join(&self.set).join(&self.path)
    }
}
