//! The cache of `huggingface_hub`: `models--org--name/` with `blobs/ETAG`, `snapshots/COMMIT/PATH` (links to the blobs) and
//! `refs/REVISION` (a commit). Locks are in `.locks/`.
//!
//! Reference: <https://huggingface.co/docs/huggingface_hub/guides/manage-cache>.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Hub, Repo, RepoFile};

impl Hub {
    /// The folder of a commit.
    pub(crate) fn snapshot(&self, repo: &Repo, commit: &str) -> PathBuf {
        self.cache.join(repo.folder()).join("snapshots").join(commit)
    }

    /// The commit of the revision when it was fetched last.
    pub(crate) fn cached_commit(&self, repo: &Repo) -> Option<String> {
        if repo.is_commit() {
            return Some(repo.revision.clone());
        }
        let path = self.cache.join(repo.folder()).join("refs").join(&repo.revision);
        let commit = fs::read_to_string(path).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| !commit.is_empty() && !commit.contains(['/', '\\', '.']))
    }

    /// Records the commit of a revision.
    pub(crate) fn cache_commit(&self, repo: &Repo, commit: &str) -> Result<(), Error> {
        if repo.is_commit() || self.cached_commit(repo).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.cache.join(repo.folder()).join("refs").join(&repo.revision);
        llm_files::write_atomic(&path, |out| out.write_all(commit.as_bytes())).map_err(Error::io(path))
    }

    /// The path of a blob, and of the lock for its transfer.
    pub(crate) fn blob(&self, repo: &Repo, file: &RepoFile) -> (PathBuf, PathBuf) {
        let lock = self.cache.join(".locks").join(repo.folder()).join(format!("{}.lock", file.etag));
        (self.cache.join(repo.folder()).join("blobs").join(&file.etag), lock)
    }
}

/// Links a file of a snapshot to its blob, by a relative path, so that the cache can be moved.
pub(crate) fn link(blob: &Path, path: &str, snapshot: &Path) -> Result<(), Error> {
    let pointer = snapshot.join(path);
    let folder = pointer.parent().unwrap_or(snapshot);
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    // A link whose blob was deleted.
    if !pointer.exists() && pointer.is_symlink() {
        fs::remove_file(&pointer).map_err(Error::io(&pointer))?;
    }
    let linked = make_link(blob, path, &pointer);
    match linked {
        // Another process was faster.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && pointer.exists() => Ok(()),
        other => other.map_err(Error::io(&pointer)),
    }
}

#[cfg(unix)]
fn make_link(blob: &Path, path: &str, pointer: &Path) -> std::io::Result<()> {
    // From snapshots/COMMIT/PATH to blobs/ETAG.
    let up = "../".repeat(2 + path.matches('/').count());
    let name = blob.file_name().unwrap_or_default();
    std::os::unix::fs::symlink(Path::new(&up).join("blobs").join(name), pointer)
}

/// Links need a permission on Windows: the blob becomes the file, as in `huggingface_hub`.
#[cfg(not(unix))]
fn make_link(blob: &Path, _: &str, pointer: &Path) -> std::io::Result<()> {
    fs::rename(blob, pointer)
}
