//! `org/name[@revision]` to a folder: what a model, a tokenizer or an adapter needs, from the cache or from the hub.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{Download, Error, Event, Hub, Repo, RepoFile, cache};

const INDEX: &str = "model.safetensors.index.json";
const WEIGHTS: &str = "model.safetensors";
const TOKENIZER: [&str; 9] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];
/// Further chat templates.
const TEMPLATES: &str = "additional_chat_templates/";

/// What a repository is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Configuration, tokenizer and weights.
    Model,
    /// The tokenizer, with the configuration if there is one.
    Tokenizer,
    /// An adapter in PEFT's format, with its tokenizer if it has one.
    Adapter,
    /// The configuration.
    Config,
}

impl Wanted {
    /// Files without which the repository cannot be used, besides the weights of a model.
    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Model | Self::Config => &["config.json"],
            Self::Tokenizer => &[],
            Self::Adapter => &["adapter_config.json", "adapter_model.safetensors"],
        }
    }

    /// Whether a file is wanted, besides the weights of a model.
    fn takes(self, path: &str) -> bool {
        let with_tokenizer = self != Self::Config;
        let is_tokenizer = TOKENIZER.contains(&path) || path.starts_with(TEMPLATES) && path.ends_with(".jinja");
        self.required().contains(&path)
            || with_tokenizer && is_tokenizer
            || self == Self::Model && path == "generation_config.json"
            || self == Self::Tokenizer && path == "config.json"
    }

    /// Whether a folder has all that is needed. The weights are fetched last, so nothing else is missing.
    fn is_complete(self, dir: &Path) -> bool {
        let has = |name: &str| dir.join(name).is_file();
        let weights = || match shards(&dir.join(INDEX)) {
            Some(Ok(shards)) => shards.iter().all(|shard| has(shard)),
            Some(Err(_)) => false,
            None => has(WEIGHTS),
        };
        self.required().iter().all(|name| has(name))
            && match self {
                Self::Model => weights(),
                Self::Tokenizer => has("tokenizer.json") || has("tokenizer.model"),
                Self::Adapter | Self::Config => true,
            }
    }
}

impl Hub {
    /// The folder of a model, tokenizer or adapter. A path that exists is returned as it is, and so is one that cannot be a name on
    /// the hub. For `org/name[@revision]` the missing files are fetched to the cache; `observe` is told the file and what happens.
    ///
    /// Without a connection the cached revision serves, with a warning.
    pub fn resolve(&self, path: &Path, wanted: Wanted, observe: &mut dyn FnMut(&str, Event)) -> Result<PathBuf, Error> {
        let Some(repo) = Repo::of_path(path) else { return Ok(path.to_owned()) };
        let cached = self.cached_commit(&repo).map(|commit| self.snapshot(&repo, &commit));
        let cached = cached.filter(|dir| wanted.is_complete(dir));
        let name = path.display();
        match cached {
            Some(dir) if repo.is_commit() || self.offline => return Ok(dir),
            None if self.offline => return Err(self.not_cached(&repo, "and fetching is switched off")),
            _ => {}
        }
        let (commit, files) = match self.info(&repo) {
            Ok(info) => info,
            Err(error) if error.is_of_the_connection() => match cached {
                Some(dir) => {
                    tracing::warn!("{name}: {error}; the copy in the cache is used: {}", dir.display());
                    return Ok(dir);
                }
                None => return Err(self.not_cached(&repo, &format!("and the hub cannot be asked ({error})"))),
            },
            Err(Error::Status { status: 401 | 403 | 404, url, .. }) => {
                let message = format!(
                    "no such folder here, and no such model that may be read at {url}; check the name and the revision; a private model needs HF_TOKEN"
                );
                return Err(Error::Repository { name: name.to_string(), message });
            }
            Err(error) => return Err(error),
        };
        self.fetch_snapshot(&repo, &commit, &files, wanted, observe)?;
        self.cache_commit(&repo, &commit)?;
        Ok(self.snapshot(&repo, &commit))
    }

    /// Fetches the wanted files of a commit, the weights last.
    fn fetch_snapshot(
        &self,
        repo: &Repo,
        commit: &str,
        files: &[RepoFile],
        wanted: Wanted,
        observe: &mut dyn FnMut(&str, Event),
    ) -> Result<(), Error> {
        let find = |name: &str| files.iter().find(|file| file.path == name);
        if let Some(missing) = wanted.required().iter().find(|name| find(name).is_none()) {
            return Err(lacks(repo, missing, files));
        }
        if wanted == Wanted::Tokenizer && !["tokenizer.json", "tokenizer.model"].iter().any(|name| find(name).is_some())
        {
            return Err(lacks(repo, "tokenizer.json", files));
        }
        if wanted == Wanted::Model && find(INDEX).or_else(|| find(WEIGHTS)).is_none() {
            return Err(lacks(repo, WEIGHTS, files));
        }
        let mut now: Vec<&RepoFile> = files.iter().filter(|file| wanted.takes(&file.path)).collect();
        // The weights of an adapter.
        now.sort_by_key(|file| file.path.ends_with(".safetensors"));
        for file in now {
            self.fetch_file(repo, commit, file, observe)?;
        }
        if wanted != Wanted::Model {
            return Ok(());
        }
        let Some(index) = find(INDEX) else {
            return find(WEIGHTS).map_or(Ok(()), |file| self.fetch_file(repo, commit, file, observe));
        };
        self.fetch_file(repo, commit, index, observe)?;
        let path = self.snapshot(repo, commit).join(INDEX);
        for shard in shards(&path).unwrap_or_else(|| Ok(BTreeSet::new()))? {
            let file = find(&shard).ok_or_else(|| lacks(repo, &shard, files))?;
            self.fetch_file(repo, commit, file, observe)?;
        }
        Ok(())
    }

    fn fetch_file(
        &self,
        repo: &Repo,
        commit: &str,
        file: &RepoFile,
        observe: &mut dyn FnMut(&str, Event),
    ) -> Result<(), Error> {
        let snapshot = self.snapshot(repo, commit);
        if snapshot.join(&file.path).exists() {
            return Ok(());
        }
        let (blob, lock) = self.blob(repo, file);
        // Blobs have the name of their content: one that is there needs no check, whichever program fetched it.
        if !blob.exists() {
            let url = repo.file_url(&self.endpoint, commit, &file.path);
            let download = Download {
                url: &url,
                to: &blob,
                token: self.token.as_deref(),
                length: Some(file.length),
                sha256: file.sha256.as_deref(),
                lock: Some(&lock),
            };
            self.client.fetch(&download, &mut |event| observe(&file.path, event))?;
        }
        cache::link(&blob, &file.path, &snapshot)
    }

    fn not_cached(&self, repo: &Repo, why: &str) -> Error {
        let (cache, name) = (self.cache.display(), &repo.name);
        let message = format!(
            "no such folder here, not complete in the cache {cache}, {why}; where there is a network run `hf download {name} --local-dir {}`, copy the folder here and give its path",
            name.rsplit('/').next().unwrap_or(name)
        );
        Error::Repository { name: name.clone(), message }
    }
}

/// The error for a repository without a file that is needed.
fn lacks(repo: &Repo, missing: &str, files: &[RepoFile]) -> Error {
    let has = |end: &str| files.iter().find(|file| file.path.ends_with(end)).map(|file| file.path.as_str());
    let hint = match missing {
        "config.json" if has("adapter_config.json").is_some() => {
            "; it is an adapter: give its base with --model and this name with --adapter".to_owned()
        }
        "config.json" | WEIGHTS => match has(".gguf").or(has(".bin")).or(has(".pt")) {
            Some(other) => format!("; it has {other}: choose a repository or a revision with {WEIGHTS}"),
            None => "; choose another repository".to_owned(),
        },
        _ => "; choose another repository".to_owned(),
    };
    Error::Repository {
        name: repo.name.clone(),
        message: format!("has no {missing} at revision {}{hint}", repo.revision),
    }
}

/// The shards that an index names; `None` if there is no index.
fn shards(index: &Path) -> Option<Result<BTreeSet<String>, Error>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let text = match std::fs::read_to_string(index) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => return Some(Err(Error::io(index)(error))),
    };
    let parsed = serde_json::from_str(&text).map_err(|error| Error::Repository {
        name: index.display().to_string(),
        message: format!("not an index of weights ({error}); delete the file, so that it is fetched again"),
    });
    Some(parsed.map(|index: Index| index.weight_map.into_values().collect()))
}
