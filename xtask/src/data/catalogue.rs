//! The catalogue of datasets, `xtask/data/catalogue.toml`.

use std::fmt;

use llm_cli::Failure;
use llm_hub::{Repo, RepoKind};
use serde::Deserialize;

const TEXT: &str = include_str!("../../data/catalogue.toml");

/// All sets, grouped by purpose.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Catalogue {
    #[serde(rename = "set")]
    pub sets: Vec<Set>,
}

/// A dataset or a model.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Set {
    pub name: String,
    pub purpose: Purpose,
    pub about: String,
    pub licence: String,
    /// Length of all files.
    pub bytes: u64,
    /// URL of the folder of the files.
    pub base: Option<String>,
    /// `org/name` or `datasets/org/name` on the Hugging Face hub.
    pub hub: Option<String>,
    pub revision: Option<String>,
    pub files: Vec<File>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Purpose {
    PreTraining,
    Instruction,
    Preference,
    Evaluation,
    Model,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::PreTraining => "Pre-training",
            Self::Instruction => "Instruction",
            Self::Preference => "Preference",
            Self::Evaluation => "Evaluation",
            Self::Model => "Models",
        })
    }
}

/// A file of a set.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum File {
    /// A path, or a pattern with `*`.
    Named(String),
    /// A path with its content.
    Known { path: String, bytes: u64, sha256: String },
}

impl File {
    pub fn path(&self) -> &str {
        match self {
            Self::Named(path) | Self::Known { path, .. } => path,
        }
    }
}

/// Where the files of a set are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// The URL of their folder, with `/` at the end.
    Folder(String),
    Hub(Repo),
}

impl Catalogue {
    /// The catalogue of this program.
    pub fn read() -> Result<Self, Failure> {
        toml::from_str(TEXT).map_err(|error| Failure::internal(format!("xtask/data/catalogue.toml: {error}")))
    }

    /// The set of a name.
    pub fn find(&self, name: &str) -> Result<&Set, Failure> {
        self.sets.iter().find(|set| set.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.sets.iter().map(|set| set.name.as_str()).collect();
            Failure::input(format!("{name}: not in the catalogue; it has {}", names.join(", ")))
        })
    }
}

impl Set {
    pub fn place(&self) -> Result<Place, Failure> {
        let wrong = || Failure::internal(format!("xtask/data/catalogue.toml: {}: needs base, or hub", self.name));
        match (&self.base, &self.hub) {
            (Some(base), None) => Ok(Place::Folder(base.clone())),
            (None, Some(hub)) => {
                let (kind, name) = match hub.strip_prefix("datasets/") {
                    Some(name) => (RepoKind::Dataset, name),
                    None => (RepoKind::Model, hub.as_str()),
                };
                let revision = self.revision.as_deref().unwrap_or("main");
                Repo::parse(kind, &format!("{name}@{revision}")).map(Place::Hub).ok_or_else(wrong)
            }
            _ => Err(wrong()),
        }
    }
}

/// Whether a path matches a pattern, in which `*` matches any characters but `/`.
pub(crate) fn matches(pattern: &str, path: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == path,
        Some((start, rest)) => path.strip_prefix(start).is_some_and(|path| {
            let ends = path.char_indices().map(|(at, _)| at).chain([path.len()]);
            ends.take_while(|at| !path[..*at].contains('/')).any(|at| matches(rest, &path[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_catalogue_is_valid() {
        let catalogue = Catalogue::read().unwrap();
        let names: BTreeSet<&str> = catalogue.sets.iter().map(|set| set.name.as_str()).collect();
        assert_eq!(names.len(), catalogue.sets.len());
        for set in &catalogue.sets {
            let place = set.place().unwrap();
            assert!(!set.files.is_empty() && !set.licence.is_empty() && !set.about.is_empty(), "{}", set.name);
            let paths: BTreeSet<&str> = set.files.iter().map(File::path).collect();
            assert_eq!(paths.len(), set.files.len(), "{}", set.name);
            if let Place::Folder(base) = place {
                assert!(base.starts_with("https://") && base.ends_with('/'), "{base}");
            }
            let mut known = 0;
            for file in &set.files {
                assert!(!file.path().starts_with('/') && !file.path().contains(".."), "{}", file.path());
                if let File::Known { bytes, sha256, .. } = file {
                    known += bytes;
                    assert!(sha256.len() == 64 && *bytes > 0, "{}", file.path());
                }
            }
            assert!(known <= set.bytes, "{}: {known}", set.name);
        }
    }

    #[test]
    fn the_sets_of_a_purpose_are_together() {
        let mut purposes: Vec<Purpose> = Catalogue::read().unwrap().sets.iter().map(|set| set.purpose).collect();
        purposes.dedup();
        assert_eq!(purposes.len(), 5);
    }

    #[test]
    fn a_star_does_not_cross_a_folder() {
        assert!(matches("data/all/*.parquet", "data/all/train-0.parquet"));
        assert!(matches("a*b*c", "axxbxxc") && matches("*", "") && matches("a/*/c", "a/b/c"));
        for path in ["data/all/x/0.parquet", "data/all/0.txt", "x/data/all/0.parquet"] {
            assert!(!matches("data/all/*.parquet", path), "{path}");
        }
        assert!(!matches("a", "ab"));
    }
}
