//! Files that are whole or not there: written beside their place under another name, then renamed.
//!
//! ```
//! let dir = tempfile::tempdir()?;
//! let path = dir.path().join("run/notes.txt");
//! llm_files::write_atomic(&path, |out| out.write_all(b"begun\n"))?;
//! // A write that fails leaves what was there.
//! assert!(llm_files::write_atomic(&path, |_| Err(std::io::Error::other("no"))).is_err());
//! assert_eq!(std::fs::read(&path)?, b"begun\n");
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! A program that is killed while it writes leaves a file whose name begins with `.tmp`; [`remove_temp_files`] clears a folder of
//! such files. [`write_checksums`] and [`verify_checksums`] guard a folder by checksums, [`Lock`] keeps a second process out. Where to look next: `llm_model::write_safetensors`, which writes the weights of a model in this way.

mod checksum;
mod lock;

pub use checksum::{checksum, combine_checksums, list_files, sync_folder, verify_checksums, write_checksums};
pub use lock::Lock;

use std::fs;
use std::io::{BufWriter, Result, Write};
use std::path::Path;

use tempfile::{Builder, NamedTempFile, TempDir};

const PREFIX: &str = ".tmp";

/// Writes a file, and the folders above it, so that a reader, or a crash, sees the old file or the new one and nothing between.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut buffer = BufWriter::new(temp_file(path)?);
    write(&mut buffer)?;
    let file = buffer.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    sync_folder(parent(path)?)
}

/// An empty file in the folder of `path`, which is made if need be. It is gone with its handle, unless that is persisted.
pub fn temp_file(path: &Path) -> Result<NamedTempFile> {
    named(0o666).tempfile_in(parent(path)?)
}

/// An empty folder beside `path`. It is gone with its handle, unless that is kept.
pub fn temp_folder(path: &Path) -> Result<TempDir> {
    named(0o777).tempdir_in(parent(path)?)
}

/// Whether a file of this name is one that was never finished.
pub fn is_temp_name(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().starts_with(PREFIX)
}

/// Removes what a killed program left unfinished in a folder and in those below it.
pub fn remove_temp_files(dir: &Path) -> Result<()> {
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

/// Names of unfinished files. The mode is what any program asks for (the user's mask takes from it): a temporary file is its
/// owner's alone by default, and so would be the model that it becomes.
fn named(
    #[cfg_attr(not(unix), expect(unused_variables, reason = "modes are Unix's"))] mode: u32,
) -> Builder<'static, 'static> {
    let mut builder = Builder::new();
    builder.prefix(PREFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    builder
}

/// The folder of a path, made if it is not there.
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
    fn whoever_may_read_other_files_may_read_these() {
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
    fn what_was_not_finished_is_known_by_its_name_and_removed() {
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
