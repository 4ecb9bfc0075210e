//! BLAKE3 checksums of files and folders, in the text format of `b3sum --check`.

use std::fs::{self, File};
use std::io::{Error, ErrorKind, Result};
use std::path::Path;

/// The BLAKE3 hash of a file's content, in hexadecimal.
pub fn checksum(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// One hash for several (name, hash) pairs: the hash of the sorted lines `HASH  NAME`. Does not depend on the order of `named`.
pub fn combine_checksums(mut named: Vec<(String, String)>) -> String {
    named.sort();
    let text: String = named.into_iter().map(|(name, hash)| format!("{hash}  {name}\n")).collect();
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

/// All files in a folder and its subfolders, as sorted paths relative to `dir` with `/` as separator. Follows symbolic links.
pub fn list_files(dir: impl AsRef<Path>) -> Result<Vec<String>> {
    let dir = dir.as_ref();
    let (mut names, mut folders) = (Vec::new(), vec![String::new()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(dir.join(&folder))? {
            let name = format!("{folder}{}", entry?.file_name().to_string_lossy());
            match dir.join(&name).is_dir() {
                true => folders.push(format!("{name}/")),
                false => names.push(name),
            }
        }
    }
    names.sort();
    Ok(names)
}

/// Writes the checksums of all files in `dir` to the file `list` in `dir`, and syncs all files and folders to disk.
pub fn write_checksums(dir: impl AsRef<Path>, list: &str) -> Result<()> {
    let dir = dir.as_ref();
    let mut text = String::new();
    for name in list_files(dir)? {
        let path = dir.join(&name);
        text.push_str(&format!("{}  {name}\n", checksum(&path)?));
        File::open(&path)?.sync_all()?;
    }
    crate::write_atomic(&dir.join(list), |out| out.write_all(text.as_bytes()))?;
    sync_folders(dir)
}

/// Compares the files in `dir` with the checksums that [`write_checksums`] wrote. The error names the first file that is missing
/// or has changed.
pub fn verify_checksums(dir: impl AsRef<Path>, list: &str) -> Result<()> {
    let dir = dir.as_ref();
    let invalid = |message: String| Error::new(ErrorKind::InvalidData, message);
    let text = fs::read_to_string(dir.join(list)).map_err(|e| invalid(format!("{list}: {e}")))?;
    if text.is_empty() {
        return Err(invalid(format!("{list} is empty")));
    }
    for line in text.lines() {
        let (hash, name) = line.split_once("  ").ok_or_else(|| invalid(format!("{list} is damaged")))?;
        let found = checksum(&dir.join(name)).map_err(|e| invalid(format!("{name}: {e}")))?;
        if found != hash {
            return Err(invalid(format!("{name} has changed since it was written")));
        }
    }
    Ok(())
}

/// Syncs the entries of a folder to disk, so that a rename in it survives a power failure. Does nothing outside Unix.
pub fn sync_folder(dir: impl AsRef<Path>) -> Result<()> {
    let dir = dir.as_ref();
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

fn sync_folders(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_folders(&entry.path())?;
        }
    }
    sync_folder(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_an_empty_file_matches_the_blake3_test_vector() {
        // The first vector of BLAKE3's test vectors (the empty input), as `b3sum` prints it.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty");
        fs::write(&path, "").unwrap();
        assert_eq!(checksum(&path).unwrap(), "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
    }

    #[test]
    fn verify_finds_changed_and_missing_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("deep")).unwrap();
        fs::write(path("a"), "one").unwrap();
        fs::write(path("deep/b"), "two").unwrap();
        assert!(verify_checksums(dir.path(), "list").is_err());
        write_checksums(dir.path(), "list").unwrap();
        verify_checksums(dir.path(), "list").unwrap();
        assert_eq!(list_files(dir.path()).unwrap(), ["a", "deep/b", "list"]);

        fs::write(path("deep/b"), "twp").unwrap(); // one bit
        assert!(verify_checksums(dir.path(), "list").unwrap_err().to_string().contains("deep/b"));
        fs::write(path("deep/b"), "two").unwrap();
        fs::remove_file(path("a")).unwrap();
        assert!(verify_checksums(dir.path(), "list").unwrap_err().to_string().contains('a'));
        fs::write(path("a"), "one").unwrap();
        fs::write(path("list"), "").unwrap();
        assert!(verify_checksums(dir.path(), "list").is_err());
    }

    #[test]
    fn a_combined_hash_depends_on_names_and_hashes_but_not_on_order() {
        let pair = |name: &str, hash: &str| (name.to_owned(), hash.to_owned());
        let all = combine_checksums(vec![pair("a", "1"), pair("b", "2")]);
        assert_eq!(all, combine_checksums(vec![pair("b", "2"), pair("a", "1")]));
        assert_ne!(all, combine_checksums(vec![pair("a", "2"), pair("b", "1")]));
        assert_ne!(all, combine_checksums(vec![pair("a", "1")]));
    }
}
