//! Files: atomic writes, locks, checksums, memory-mapped bytes, and the containers safetensors and GGUF.
//!
//! An atomic write has a temporary name in the same folder, is synced to disk, then renamed.
//!
//! ```
//! let dir = tempfile::tempdir()?;
//! let path = dir.path().join("run/notes.txt");
//! llm_files::write_atomic(&path, |out| out.write_all(b"begun\n"))?;
//! // A failed write leaves the old file unchanged.
//! assert!(llm_files::write_atomic(&path, |_| Err(std::io::Error::other("no"))).is_err());
//! assert_eq!(std::fs::read(&path)?, b"begun\n");
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! A program that is killed during a write leaves a temporary file whose name starts with `.tmp`; [`remove_temp_files`] deletes
//! such files. [`write_checksums`] and [`verify_checksums`] detect changed files in a folder, [`Lock`] excludes a second process.
//! [`SafetensorsFile`] and [`gguf::GgufFile`] validate the header of a memory-mapped file; this crate does not know tensors or models.
//! Functions on files return errors of the standard library: [`is_callers_fault`] and [`error_text`] say what they mean.
//!
//! Where to look next: `llm_model::write_safetensors`, which writes the weights of a model with [`write_atomic`].
//!
//! `examples/atomic_write.rs` is an example to copy: atomic writes, checksums and a lock.

mod bytes;
mod checksum;
mod dtype;
mod error;
pub mod gguf;
mod hub;
mod io_error;
mod lock;
mod safetensors_file;

pub use bytes::Bytes;
pub use checksum::{checksum, combine_checksums, list_files, sync_folder, verify_checksums, write_checksums};
pub use dtype::{BlockFormat, WeightDtype};
pub use error::Error;
pub use hub::{hub_hint, hub_name};
pub use io_error::{error_text, is_callers_fault};
pub use lock::Lock;
pub use safetensors_file::{SafetensorsFile, SafetensorsTensor};

use std::fs;
use std::io::{BufWriter, Result, Write};
use std::path::Path;

use tempfile::{Builder, NamedTempFile, TempDir};

const PREFIX: &str = ".tmp";

/// Writes a file atomically: readers, and a crash at any time, see the old content or the new content. Creates the parent
/// folders. An error leaves the old file unchanged.
pub fn write_atomic(path: impl AsRef<Path>, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let path = path.as_ref();
    let mut buffer = BufWriter::new(temp_file(path)?);
    write(&mut buffer)?;
    let file = buffer.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    sync_folder(parent(path)?)
}

/// Creates an empty temporary file in the folder of `path`; creates that folder if it does not exist. Dropping the handle
/// deletes the file unless it was persisted.
pub fn temp_file(path: impl AsRef<Path>) -> Result<NamedTempFile> {
    let path = path.as_ref();
    temp_builder(0o666).tempfile_in(parent(path)?)
}

/// Creates an empty temporary folder in the parent folder of `path`. Dropping the handle deletes it unless it was kept.
pub fn temp_folder(path: impl AsRef<Path>) -> Result<TempDir> {
    let path = path.as_ref();
    temp_builder(0o777).tempdir_in(parent(path)?)
}

/// Whether this is the name of a temporary file or folder of this crate.
pub fn is_temp_name(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().starts_with(PREFIX)
}

/// Deletes the temporary files and folders that a killed program left in `dir` and its subfolders.
pub fn remove_temp_files(dir: impl AsRef<Path>) -> Result<()> {
    let dir = dir.as_ref();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        match (is_temp_name(&entry.file_name()), entry.file_type()?.is_dir()) {
            (true, true) => fs::remove_dir_all(entry.path())?,
            (true, false) => fs::remove_file(entry.path())?,
            (false, true) => remove_temp_files(&entry.path())?,
            (false, false) => {}
        }
    }
    Ok(())
}

/// A builder for temporary names. `mode` is the Unix permission before the umask is applied; the default of `tempfile` (0o600)
/// would make the final file readable by its owner only.
fn temp_builder(
    #[cfg_attr(not(unix), expect(unused_variables, reason = "modes are Unix's"))] mode: u32,
) -> Builder<'static, 'static> {
    let mut builder = Builder::new();
    builder.prefix(PREFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    builder
}

/// The parent folder of a path, created if it does not exist.
fn parent(path: &Path) -> Result<&Path> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn files_and_folders_have_the_default_permissions() {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let dir = tempfile::tempdir().unwrap();
        let (plain, ours) = (dir.path().join("plain"), dir.path().join("ours"));
        fs::write(&plain, "").unwrap();
        write_atomic(&ours, |_| Ok(())).unwrap();
        assert_eq!(mode(&ours), mode(&plain));

        fs::create_dir(dir.path().join("folder")).unwrap();
        let folder = temp_folder(&ours).unwrap();
        assert_eq!(mode(folder.path()), mode(&dir.path().join("folder")));
    }

    #[test]
    fn temporary_files_are_recognised_by_name_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("kept"), "").unwrap();
        let (_, path) = temp_file(&dir.path().join("a")).unwrap().keep().unwrap();
        temp_file(&dir.path().join("deep/a")).unwrap().keep().unwrap();
        fs::write(temp_folder(&dir.path().join("deep/b")).unwrap().keep().join("c"), "").unwrap();
        assert!(is_temp_name(path.file_name().unwrap()) && !is_temp_name("a".as_ref()));
        remove_temp_files(dir.path()).unwrap();
        assert_eq!(list_files(dir.path()).unwrap(), ["kept"]);
        assert_eq!(fs::read_dir(dir.path().join("deep")).unwrap().count(), 0);
    }
}
