//! Shared read-only bytes of a memory-mapped file or of a vector.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

/// A range of a memory-mapped file or of a vector. Cloning does not copy.
///
/// A mapped range does not allocate: the system reads a page on first use and may drop it again. It keeps the file
/// open and readable even if the file is replaced by a rename, which is how every writer in this workspace replaces
/// files. The file itself must not be modified: see [`Bytes::open`].
#[derive(Clone)]
pub struct Bytes {
    source: Arc<Source>,
    range: Range<usize>,
}

enum Source {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps a regular file read-only.
    ///
    /// Nobody may write to the file or truncate it while a range of it is in use, neither this process nor another
    /// one; replace it by a rename instead. A write changes data that was already checked; a truncation ends this
    /// process with SIGBUS at the next read. All memory maps have this restriction, and the system offers no lock
    /// against it. Copy data that must stay as it was checked. This function opens the file itself, so that no handle
    /// remains through which the file could be changed.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        // SAFETY: the map is only read, as bytes or as numbers for which every bit pattern is valid, within its size,
        // which is fixed. It lives as long as its last range (`source`). The handle is read-only and is closed here,
        // and no code in this workspace writes to a file in place; the documentation forbids it to others.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file)? };
        let range = 0..map.len();
        Ok(Self { source: Arc::new(Source::Mapped(map)), range })
    }

    /// A sub-range of these bytes; `None` if it is out of bounds.
    pub fn slice(&self, part: Range<usize>) -> Option<Self> {
        self.get(part.clone())?;
        let start = self.range.start;
        Some(Self { source: self.source.clone(), range: start + part.start..start + part.end })
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &*self.source {
            Source::Mapped(map) => map,
            Source::Owned(bytes) => bytes,
        };
        &all[self.range.clone()]
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self { range: 0..bytes.len(), source: Arc::new(Source::Owned(bytes)) }
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({})", self.range.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_share_memory_and_stay_in_bounds() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        std::fs::write(&path, [1, 2, 3, 4, 5]).unwrap();
        let mapped = Bytes::open(&path).unwrap();
        for bytes in [mapped, Bytes::from(vec![1, 2, 3, 4, 5])] {
            let part = bytes.slice(1..4).unwrap();
            assert_eq!((part.as_ptr(), &*part), (bytes[1..].as_ptr(), &[2, 3, 4][..]));
            assert_eq!(&*part.slice(1..3).unwrap(), &[3, 4]);
            #[allow(clippy::reversed_empty_ranges, reason = "the case under test")]
            for beyond in [0..4, 3..2, 4..4, usize::MAX..usize::MAX] {
                assert!(part.slice(beyond).is_none());
            }
            assert!(part.slice(3..3).unwrap().is_empty());
        }
    }

    #[test]
    fn a_replaced_file_is_still_readable() {
        let dir = tempfile::tempdir().unwrap();
        let (path, new) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&path, "old").unwrap();
        let bytes = Bytes::open(&path).unwrap();
        std::fs::write(&new, "n").unwrap();
        std::fs::rename(&new, &path).unwrap();
        assert_eq!(&*bytes, b"old");
    }

    #[test]
    fn an_empty_file_is_empty_and_a_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "").unwrap();
        assert!(Bytes::open(&path).unwrap().is_empty());
        assert!(Bytes::open(dir.path()).is_err() && Bytes::open(&dir.path().join("b")).is_err());
    }
}
