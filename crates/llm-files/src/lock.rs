//! A lock that one process holds at a time, and that ends with it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Result;
use std::path::Path;

/// An exclusive lock on a file. It is given up when the value is dropped, or the process ends in whatever way; the file stays.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock of that file, which is made if need be; none if somebody else holds it.
    pub fn try_acquire(path: &Path) -> Result<Option<Self>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            // Some network file systems have no locks; a run there goes unguarded.
            Err(TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => Ok(Some(Self { file })),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }
}

impl Drop for Lock {
    /// Unlocks, as closing the file would not be enough: the lock belongs to all copies of the file's handle, and a process that
    /// this one starts has a copy until it runs its own program.
    fn drop(&mut self) {
        // Without locks there is nothing to give up.
        let _ = self.file.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_once_and_ends_with_its_value() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = Lock::try_acquire(&path).unwrap().unwrap();
        assert!(Lock::try_acquire(&path).unwrap().is_none());
        drop(held);
        assert!(Lock::try_acquire(&path).unwrap().is_some());
    }

    #[test]
    fn a_copy_of_the_handle_in_a_process_that_is_being_started_holds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = Lock::try_acquire(&path).unwrap().unwrap();
        let inherited = held.file.try_clone().unwrap();
        assert!(Lock::try_acquire(&path).unwrap().is_none());
        drop(held);
        assert!(Lock::try_acquire(&path).unwrap().is_some());
        drop(inherited);
    }
}
