//! Bytes of a file or of memory, shared without a copy.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

/// A part of a mapped file, or of memory; a clone is the same bytes.
///
/// A mapped part takes no memory of its own: the system reads a page when it is first used and may drop it again. It
/// keeps its file open and readable even when the file is replaced by rename, as every writer of this workspace does.
/// The file itself must not be changed: see [`Bytes::open`].
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
    /// The whole of a regular file, mapped read-only.
    ///
    /// Nobody may write to the file or truncate it while a part of it is in use, neither this process nor another one: replace it
    /// by rename. Who writes changes numbers that were read already; who truncates ends this process by a signal (SIGBUS) at its
    /// next read. That is the price of every memory map, and the system offers no lock against it. What must stay as it was
    /// checked is to be copied. It opens the file itself, so that no handle is left by which the file could be changed.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        // SAFETY: the map is only read, as bytes or as numbers for which every pattern is valid, within its size, which was
        // fixed when it was made; it lives as long as the last part of it (`source`). The handle is read-only and ends here, and
        // nothing in this workspace writes to a file in place; others are bound by what the documentation asks of them.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file)? };
        let range = 0..map.len();
        Ok(Self { source: Arc::new(Source::Mapped(map)), range })
    }

    /// A part of these bytes; none where it reaches beyond them.
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
    fn a_part_is_read_where_it_lies_and_never_reaches_beyond() {
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
    fn a_file_that_was_replaced_is_still_read() {
        let dir = tempfile::tempdir().unwrap();
        let (path, new) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&path, "old").unwrap();
        let bytes = Bytes::open(&path).unwrap();
        std::fs::write(&new, "n").unwrap();
        std::fs::rename(&new, &path).unwrap();
        assert_eq!(&*bytes, b"old");
    }

    #[test]
    fn an_empty_file_is_empty_and_what_is_no_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "").unwrap();
        assert!(Bytes::open(&path).unwrap().is_empty());
        assert!(Bytes::open(dir.path()).is_err() && Bytes::open(&dir.path().join("b")).is_err());
    }
}
