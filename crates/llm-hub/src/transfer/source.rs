//! What a server or a local folder answers to a request for the bytes of a file from an offset on.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use percent_encoding::percent_decode_str;

use crate::Error;

/// An answer.
pub(super) enum Reply {
    /// Bytes of the file.
    Body(Answer),
    /// There are no bytes at this offset (HTTP 416). `total` is the length of the file, if it was said.
    NothingLeft { total: Option<u64> },
}

/// Bytes of a file.
pub(super) struct Answer {
    /// Offset of the first byte of `body`: the one asked for, or 0.
    pub start: u64,
    /// Length of the whole file.
    pub total: Option<u64>,
    /// The etag with its quotes.
    pub etag: Option<String>,
    /// The commit of the hub's repository.
    pub commit: Option<String>,
    /// The sha256 that the hub knows of the file.
    pub sha256: Option<String>,
    pub body: Box<dyn Read>,
}

/// The path of a `file://` URL; `None` for other URLs. A path without a leading `/` is relative to the current folder.
pub fn local_path(url: &str) -> Result<Option<PathBuf>, Error> {
    let Some(path) = url.strip_prefix("file://") else { return Ok(None) };
    let path = path.strip_prefix("localhost/").map_or(path.to_owned(), |path| format!("/{path}"));
    let path = percent_decode_str(&path).decode_utf8();
    let path =
        path.map_err(|_| Error::Url { url: url.to_owned(), message: "is not UTF-8 after its %XX".to_owned() })?;
    // file:///C:/folder
    let drive = path.strip_prefix('/').filter(|rest| cfg!(windows) && rest.as_bytes().get(1) == Some(&b':'));
    Ok(Some(PathBuf::from(drive.unwrap_or(&path))))
}

/// Opens a local file from `from` on, or from 0 if its etag is not `etag`. Length and time of change serve as etag.
pub(super) fn open(path: &PathBuf, from: u64, etag: Option<&str>) -> Result<Reply, Error> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let metadata = file.metadata().map_err(Error::io(path))?;
    if metadata.is_dir() {
        return Err(Error::io(path)(std::io::ErrorKind::IsADirectory.into()));
    }
    let changed = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let total = metadata.len();
    let current = format!("\"{total}-{}\"", changed.map_or(0, |time| time.as_nanos()));
    let start = if etag.is_none_or(|etag| etag == current) { from } else { 0 };
    if start > 0 && start >= total {
        return Ok(Reply::NothingLeft { total: Some(total) });
    }
    file.seek(SeekFrom::Start(start)).map_err(Error::io(path))?;
    let (etag, body) = (Some(current), Box::new(file));
    Ok(Reply::Body(Answer { start, total: Some(total), etag, commit: None, sha256: None, body }))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_file_url_has_a_path() {
        let path = |url: &str| local_path(url).unwrap();
        assert_eq!(path("file:///data/a%20b").as_deref(), Some(Path::new("/data/a b")));
        assert_eq!(path("file://localhost/data").as_deref(), Some(Path::new("/data")));
        assert_eq!(path("file://mirror/a").as_deref(), Some(Path::new("mirror/a")));
        assert_eq!(path("https://host/a"), None);
        assert!(local_path("file:///%ff").is_err());
    }
}
