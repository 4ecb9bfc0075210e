//! The files of a repository, as the interface of the hub lists them.

use serde::Deserialize;

use crate::name::{encode_path, encode_segment};
use crate::{Error, Hub, Repo};

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoFile {
    /// Path in the repository.
    pub path: String,
    /// Length in bytes.
    pub length: u64,
    /// Name of its content in the cache: the sha256 of a large file, the git hash (SHA-1) of a small one.
    pub etag: String,
    /// sha256 of a large file.
    pub sha256: Option<String>,
}

/// `GET /api/models/org/name/revision/REVISION?blobs=true`.
#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

/// A large file. The two interfaces name its sha256 differently.
#[derive(Deserialize)]
struct Lfs {
    #[serde(alias = "oid")]
    sha256: String,
    size: u64,
}

/// An entry of `GET /api/datasets/org/name/tree/REVISION/FOLDER?recursive=true`.
#[derive(Deserialize)]
struct Entry {
    r#type: String,
    path: String,
    oid: String,
    size: u64,
    lfs: Option<Lfs>,
}

impl Hub {
    /// The commit that the revision of a repository is now, and its files.
    pub(crate) fn info(&self, repo: &Repo) -> Result<(String, Vec<RepoFile>), Error> {
        let url = format!("{}/revision/{}?blobs=true", repo.api_url(&self.endpoint), encode_segment(&repo.revision));
        let page = self.client.page(&url, self.token.as_deref())?;
        let answer = |message: String| Error::Answer { url: url.clone(), message };
        let info: Info = serde_json::from_str(&page.text).map_err(|e| answer(format!("not a list of files: {e}")))?;
        if info.sha.len() != 40 || !info.sha.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(answer(format!("the commit {:?} is not valid", info.sha)));
        }
        let file = |sibling: Sibling| {
            let Sibling { rfilename: path, size, blob_id, lfs } = sibling;
            let file = match (lfs, size, blob_id) {
                (Some(lfs), ..) => RepoFile::new(path, lfs.size, lfs.sha256.clone(), Some(lfs.sha256)),
                (None, Some(size), Some(git)) => RepoFile::new(path, size, git, None),
                _ => return Err(answer(format!("{path} is listed without its length and hash"))),
            };
            file.ok_or_else(|| answer("a path or a hash is not valid".to_owned()))
        };
        Ok((info.sha, info.siblings.into_iter().map(file).collect::<Result<_, _>>()?))
    }

    /// All files in a folder of a repository and in its subfolders; an empty `folder` is the whole repository.
    pub fn tree(&self, repo: &Repo, folder: &str) -> Result<Vec<RepoFile>, Error> {
        let slash = if folder.is_empty() { "" } else { "/" };
        let (api, revision) = (repo.api_url(&self.endpoint), encode_segment(&repo.revision));
        let mut url = format!("{api}/tree/{revision}{slash}{}?recursive=true", encode_path(folder));
        let mut files = Vec::new();
        loop {
            let page = self.client.page(&url, self.token.as_deref())?;
            let answer = |message: String| Error::Answer { url: url.clone(), message };
            let entries: Vec<Entry> =
                serde_json::from_str(&page.text).map_err(|e| answer(format!("not a list of files: {e}")))?;
            for entry in entries.into_iter().filter(|entry| entry.r#type == "file") {
                let file = match entry.lfs {
                    Some(lfs) => RepoFile::new(entry.path, lfs.size, lfs.sha256.clone(), Some(lfs.sha256)),
                    None => RepoFile::new(entry.path, entry.size, entry.oid, None),
                };
                files.push(file.ok_or_else(|| answer("a path or a hash is not valid".to_owned()))?);
            }
            match page.next {
                // A token goes to the hub only.
                Some(next) if next.starts_with(&self.endpoint) => url = next,
                Some(next) => return Err(answer(format!("the next page is on another server: {next}"))),
                None => return Ok(files),
            }
        }
    }
}

impl RepoFile {
    /// A file; `None` if its path leaves the repository or its hash cannot be the name of a file.
    fn new(path: String, length: u64, etag: String, sha256: Option<String>) -> Option<Self> {
        let inside =
            !path.contains('\\') && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        let is_hash = [40, 64].contains(&etag.len()) && etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        (inside && is_hash).then_some(Self { path, length, etag, sha256 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_in_its_repository() {
        let file = |path: &str| RepoFile::new(path.to_owned(), 1, "0".repeat(40), None);
        assert!(file("onnx/model.onnx").is_some());
        for path in ["../a", "a/../../b", "/a", "a//b", "", "a\\b"] {
            assert_eq!(file(path), None, "{path}");
        }
        assert_eq!(RepoFile::new("a".to_owned(), 1, "../../evil".to_owned(), None), None);
    }
}
