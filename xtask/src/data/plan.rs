//! Which files a fetch needs, from where, and what is known of them.

use std::path::Path;

use llm_cli::Failure;
use llm_hub::{Client, Download, Error, Hub, Repo, encode_path, local_path};

use super::catalogue::{File, Place, Set, matches};
use super::lock::{self, LockFile};

/// The address that lock files name, so that they do not depend on `HF_ENDPOINT`.
const HUB: &str = "https://huggingface.co";

/// A file to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    /// The name of its set.
    pub set: String,
    /// Path in the folder of the set.
    pub path: String,
    /// Where it is fetched.
    pub url: String,
    /// The URL that the lock file names.
    pub origin: String,
    pub bytes: Option<u64>,
    pub sha256: Option<String>,
    /// The repository on the hub, whose commit is known after the fetch.
    pub repo: Option<Repo>,
    /// Whether the expected content is from a lock file.
    pub locked: bool,
}

/// A folder with copies of sets, as `fetch-data` writes it, at a URL.
#[derive(Debug)]
pub(crate) struct Mirror {
    /// With `/` at the end.
    url: String,
    lock: LockFile,
}

impl Mirror {
    /// Reads the lock file of a mirror, if it has one.
    pub fn open(url: &str, client: &Client) -> Result<Self, Failure> {
        let url = format!("{}/", url.trim_end_matches('/'));
        if let Some(dir) = local_path(&url).map_err(failure)?.filter(|dir| !dir.is_dir()) {
            return Err(Failure::input(format!("--mirror {url}: no folder {}; give a folder of sets", dir.display())));
        }
        let dir = tempfile::tempdir().map_err(|error| Failure::internal(error.to_string()))?;
        let (from, to) = (format!("{url}{}", lock::NAME), dir.path().join(lock::NAME));
        let lock = match client.fetch(&Download::new(&from, &to), &mut |_| {}) {
            Ok(_) => LockFile::read(dir.path())?,
            Err(Error::Status { status: 404, .. }) => LockFile::default(),
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => LockFile::default(),
            Err(error) => return Err(failure(error)),
        };
        Ok(Self { url, lock })
    }

    /// The paths of a set that match a pattern: those of the lock file, or of a local folder.
    fn paths(&self, set: &str, pattern: &str) -> Result<Vec<String>, Failure> {
        let locked: Vec<String> = self.lock.of(set).into_iter().map(|file| file.path.clone()).collect();
        let all = match local_path(&self.url).map_err(failure)? {
            _ if !locked.is_empty() => locked,
            Some(dir) if dir.join(set).is_dir() => {
                llm_files::list_files(dir.join(set)).map_err(|error| Failure::internal(error.to_string()))?
            }
            Some(dir) => {
                let message = "the mirror has no such set; copy its folder from where it was fetched";
                return Err(Failure::input(format!("{}: {message}", dir.join(set).display())));
            }
            None => {
                let message = format!("the mirror has no {} that lists {pattern}; copy it there", lock::NAME);
                return Err(Failure::input(format!("{}{set}: {message}", self.url)));
            }
        };
        Ok(all.into_iter().filter(|path| matches(pattern, path)).collect())
    }
}

/// The files of a set. A set in the lock file has the files, lengths and checksums of that file.
pub(crate) fn plan(set: &Set, lock: &LockFile, mirror: Option<&Mirror>, hub: &Hub) -> Result<Vec<Item>, Failure> {
    let locked = lock.of(&set.name);
    let mut items = if locked.is_empty() { unlocked(set, mirror, hub)? } else { Vec::new() };
    for file in locked {
        items.push(Item {
            set: set.name.clone(),
            path: file.path.clone(),
            url: file.url.replacen(HUB, &hub.endpoint, 1),
            origin: file.url.clone(),
            bytes: Some(file.bytes),
            sha256: Some(file.sha256.clone()),
            repo: None,
            locked: true,
        });
    }
    if let Some(mirror) = mirror {
        for item in &mut items {
            item.url = format!("{}{}/{}", mirror.url, item.set, encode_path(&item.path));
        }
    }
    if items.is_empty() {
        return Err(Failure::internal(format!("{}: no file matches the patterns of the catalogue", set.name)));
    }
    Ok(items)
}

/// The files of a set that was not fetched before.
fn unlocked(set: &Set, mirror: Option<&Mirror>, hub: &Hub) -> Result<Vec<Item>, Failure> {
    let place = set.place()?;
    let mut items = Vec::new();
    for file in &set.files {
        let pattern = file.path();
        let (bytes, sha256) = match file {
            File::Named(_) => (None, None),
            File::Known { bytes, sha256, .. } => (Some(*bytes), Some(sha256.clone())),
        };
        let item = |path: String, bytes: Option<u64>, sha256: Option<String>| {
            let (set, encoded) = (set.name.clone(), encode_path(&path));
            let (url, origin, repo) = match &place {
                Place::Folder(base) => (format!("{base}{encoded}"), format!("{base}{encoded}"), None),
                Place::Hub(repo) => {
                    let url = |endpoint: &str| repo.file_url(endpoint, &repo.revision, &path);
                    (url(&hub.endpoint), url(HUB), Some(repo.clone()))
                }
            };
            Item { set, path, url, origin, bytes, sha256, repo, locked: false }
        };
        match (mirror, &place) {
            _ if !pattern.contains('*') => items.push(item(pattern.to_owned(), bytes, sha256)),
            (Some(mirror), _) => {
                items.extend(mirror.paths(&set.name, pattern)?.into_iter().map(|path| item(path, None, None)));
            }
            (None, Place::Hub(repo)) => {
                let fixed = pattern.split('*').next().unwrap_or_default();
                let folder = fixed.rsplit_once('/').map_or("", |(folder, _)| folder);
                let files = hub.tree(repo, folder).map_err(failure)?;
                let matching = files.into_iter().filter(|file| matches(pattern, &file.path));
                items.extend(matching.map(|file| item(file.path, Some(file.length), file.sha256)));
            }
            (None, Place::Folder(base)) => {
                return Err(Failure::internal(format!("{base}: a pattern needs a set on the hub")));
            }
        }
    }
    if let Some(mirror) = mirror {
        expect_lock(&mut items, &mirror.lock);
    }
    Ok(items)
}

/// Takes over what the lock file of a mirror says; what the catalogue knows stays.
fn expect_lock(items: &mut [Item], lock: &LockFile) {
    for item in items {
        let found = lock.files.iter().find(|file| file.set == item.set && file.path == item.path);
        if let Some(found) = found.filter(|_| item.sha256.is_none()) {
            item.bytes = Some(found.bytes);
            item.sha256 = Some(found.sha256.clone());
            item.origin.clone_from(&found.url);
        }
    }
}

impl Item {
    /// The URL for the lock file: with the commit instead of a branch.
    pub fn pinned(&self, commit: Option<&str>) -> String {
        match (&self.repo, commit) {
            (Some(repo), Some(commit)) => repo.file_url(HUB, commit, &self.path),
            _ => self.origin.clone(),
        }
    }

    /// Where the file is in a data folder.
    pub fn in_folder(&self, dir: &Path) -> std::path::PathBuf {
        dir.join(&self.set).join(&self.path)
    }
}

/// The failure of the program for an error of the transfer.
pub(crate) fn failure(error: Error) -> Failure {
    Failure::of(&error, error.is_callers_fault())
}

#[cfg(test)]
mod tests {
    use llm_hub::Patience;

    use super::super::catalogue::Catalogue;
    use super::super::lock::Locked;
    use super::*;

    fn hub(endpoint: &str) -> Hub {
        let client = Client::new(Patience::default());
        Hub { endpoint: endpoint.to_owned(), token: None, cache: "cache".into(), offline: false, client }
    }

    fn items(name: &str, lock: &LockFile, endpoint: &str) -> Vec<Item> {
        plan(Catalogue::read().unwrap().find(name).unwrap(), lock, None, &hub(endpoint)).unwrap()
    }

    #[test]
    fn urls_are_those_of_the_hub_and_of_github() {
        let lock = LockFile::default();
        let story = &items("tinystories", &lock, HUB)[1];
        let url = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-valid.txt";
        assert_eq!(story.url, url);
        let pinned = url.replace("/main/", "/0a1b/");
        assert_eq!(story.pinned(Some("0a1b")), pinned);
        let model = items("pythia-70m", &lock, "http://localhost:1");
        assert_eq!(model[0].url, "http://localhost:1/EleutherAI/pythia-70m/resolve/main/config.json");
        assert_eq!(model[0].origin, "https://huggingface.co/EleutherAI/pythia-70m/resolve/main/config.json");
        let summaries = &items("summarise-from-feedback", &lock, HUB)[0].url;
        let expected = "https://huggingface.co/datasets/openai/summarize_from_feedback/resolve/refs%2Fconvert%2Fparquet/comparisons/train/0000.parquet";
        assert_eq!(summaries, expected);
        let blimp = items("blimp", &lock, HUB);
        assert_eq!(blimp.len(), 67);
        assert!(blimp.iter().all(|item| item.sha256.is_some() && item.url.ends_with(&item.path)));
    }

    #[test]
    fn a_locked_set_has_the_files_of_the_lock_on_any_endpoint() {
        let url = "https://huggingface.co/datasets/a/b/resolve/0a1b/c.txt".to_owned();
        let (set, path, sha256) = ("dolly".to_owned(), "c.txt".to_owned(), "0".repeat(64));
        let lock = LockFile { files: vec![Locked { set, path, url: url.clone(), bytes: 7, sha256: sha256.clone() }] };
        let items = items("dolly", &lock, "http://localhost:1");
        assert_eq!(items.len(), 1);
        assert_eq!(items[0].url, "http://localhost:1/datasets/a/b/resolve/0a1b/c.txt");
        assert_eq!((items[0].origin.as_str(), items[0].bytes, items[0].locked), (url.as_str(), Some(7), true));
        assert_eq!(items[0].sha256.as_deref(), Some(sha256.as_str()));
    }
}
