//! Text and JSONL files, plain or compressed by gzip, read and written whole.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde::Serialize;
use serde_json::Value;

use crate::{Error, Result};

/// The text of a file; `.gz` is decompressed. Bytes that are not UTF-8 are an error that says where.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let mut bytes = Vec::new();
    let read = match path.extension().is_some_and(|e| e == "gz") {
        true => MultiGzDecoder::new(file).read_to_end(&mut bytes),
        false => file.read_to_end(&mut bytes),
    };
    read.map_err(Error::io(path))?;
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::unusable(path, format!("byte {at} is not UTF-8; convert the file to UTF-8 first"))
    })
}

/// Writes bytes so that a reader sees the old file or the new one and nothing between.
pub(crate) fn write_atomic(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    llm_files::write_atomic(path, write).map_err(Error::io(path))
}

/// The objects of a JSONL file (`.gz` too) with their line numbers from 1; blank lines are skipped.
pub fn read_jsonl(path: &Path) -> Result<Vec<(usize, Value)>> {
    let text = read_text(path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parse = |(at, line): (usize, &str)| {
        let value = serde_json::from_str(line);
        let value =
            value.map_err(|e| Error::Line { path: path.into(), line: at + 1, message: format!("not JSON: {e}") });
        Ok((at + 1, value?))
    };
    lines.map(parse).collect()
}

/// Writes one JSON object for each item and line.
pub fn write_jsonl<T: Serialize>(path: &Path, items: &[T]) -> Result<()> {
    write_atomic(path, |out| {
        for item in items {
            serde_json::to_writer(&mut *out, item)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    })
}

/// The documents of a text file (one), a JSONL file (the `text` of each line), or of all such files in a folder, in
/// the order of their names. `.gz` is decompressed. A file without text is an error.
pub fn read_documents(path: &Path) -> Result<Vec<String>> {
    if path.is_dir() {
        let files = files_of(path)?;
        if files.is_empty() {
            return Err(Error::unusable(
                path,
                "holds no .txt or .jsonl file (.gz or not); give a file or another folder",
            ));
        }
        return Ok(files.iter().map(|file| read_documents(file)).collect::<Result<Vec<_>>>()?.concat());
    }
    let documents = if is_jsonl(path) {
        let text = |(line, value): (usize, Value)| match value.get("text").and_then(Value::as_str) {
            Some(text) => Ok(text.to_owned()),
            None => Err(Error::Line { path: path.into(), line, message: "has no string \"text\"".to_owned() }),
        };
        read_jsonl(path)?.into_iter().map(text).collect::<Result<Vec<_>>>()?
    } else {
        vec![read_text(path)?]
    };
    if documents.iter().all(String::is_empty) {
        return Err(Error::unusable(path, "holds no text"));
    }
    Ok(documents)
}

fn is_jsonl(path: &Path) -> bool {
    let name = path.to_string_lossy();
    name.trim_end_matches(".gz").ends_with(".jsonl")
}

fn files_of(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir))? {
        let path = entry.map_err(Error::io(dir))?.path();
        let name = path.to_string_lossy();
        let text = is_jsonl(&path) || name.trim_end_matches(".gz").ends_with(".txt");
        if text && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_come_from_text_jsonl_gzip_and_folders() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("b.txt"), "one\ntwo").unwrap();
        write_jsonl(&path("a.jsonl"), &[json!({"text": "x"}), json!({"text": "y"})]).unwrap();
        let mut gz = GzEncoder::new(File::create(path("c.txt.gz")).unwrap(), Compression::fast());
        gz.write_all("drei".as_bytes()).unwrap();
        gz.finish().unwrap();
        std::fs::write(path("notes.md"), "not read").unwrap();
        assert_eq!(read_documents(dir.path()).unwrap(), ["x", "y", "one\ntwo", "drei"]);
    }

    #[test]
    fn errors_name_the_file_the_line_and_the_fix() {
        let dir = tempfile::tempdir().unwrap();
        let message = |name: &str, content: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            let message = read_documents(&path).unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
            message
        };
        assert!(message("a.jsonl", b"{\"text\": \"x\"}\n{\"txt\": 1}\n").contains("line 2"));
        assert!(message("b.jsonl", b"{\"text\": ").contains("line 1: not JSON"));
        assert!(message("c.txt", b"ab\xff").contains("byte 2 is not UTF-8"));
        assert!(message("d.txt", b"").contains("no text"));
        assert!(read_documents(&dir.path().join("none.txt")).unwrap_err().to_string().contains("none.txt"));
    }
}
