//! Reading and writing of text and JSONL files, plain or compressed by gzip. Each file is read as a whole.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde::Serialize;
use serde_json::Value;

use crate::records::for_each_record;
use crate::{Error, Result};

/// Reads a UTF-8 text file; decompresses `.gz` and removes a byte order mark. If the file is not UTF-8, the error names the
/// position of the first invalid byte, or the format that the file seems to have.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let mut bytes = Vec::new();
    let read = match path.extension().is_some_and(|e| e == "gz") {
        true => MultiGzDecoder::new(file).read_to_end(&mut bytes),
        false => file.read_to_end(&mut bytes),
    };
    read.map_err(Error::io(path))?;
    if let Some(message) = unsupported_format(&bytes) {
        return Err(Error::unusable(path, message));
    }
    let mut text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::unusable(path, format!("byte {at} is not UTF-8; convert the file to UTF-8 first"))
    })?;
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    Ok(text)
}

/// Detects other formats by their first bytes; returns the format and the fix.
fn unsupported_format(bytes: &[u8]) -> Option<&'static str> {
    const FORMATS: [(&[u8], &str); 6] = [
        (b"\xff\xfe", "is UTF-16 text; convert it to UTF-8, for example by `iconv -f UTF-16 -t UTF-8`"),
        (b"\xfe\xff", "is UTF-16 text; convert it to UTF-8, for example by `iconv -f UTF-16 -t UTF-8`"),
        (b"\x1f\x8b", "is compressed by gzip; rename it to end in .gz"),
        (b"\x28\xb5\x2f\xfd", "is compressed by zstd; decompress it, or compress it by gzip instead"),
        (b"PAR1", "is a Parquet file; convert it to JSONL first"),
        (b"PK\x03\x04", "is a zip archive; unpack it first"),
    ];
    FORMATS.iter().find(|(start, _)| bytes.starts_with(start)).map(|(_, message)| *message)
}

/// Writes a file atomically; see [`llm_files::write_atomic`].
pub(crate) fn write_atomic(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    llm_files::write_atomic(path, write).map_err(Error::io(path))
}

/// Reads the values of a JSONL file or a JSON array (either may be compressed as `.gz`), each with its line number, counted from
/// 1. Skips blank lines. A value may span several lines.
pub fn read_jsonl(path: impl AsRef<Path>) -> Result<Vec<(usize, Value)>> {
    let path = path.as_ref();
    let mut values = Vec::new();
    for_each_record(path, &mut |line, value| {
        values.push((line, value));
        Ok(())
    })?;
    Ok(values)
}

/// Writes a JSONL file: one line per item.
pub fn write_jsonl<T: Serialize>(path: impl AsRef<Path>, items: &[T]) -> Result<()> {
    let path = path.as_ref();
    write_atomic(path, |out| {
        for item in items {
            serde_json::to_writer(&mut *out, item)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    })
}

/// Reads documents: a text file is one document, a JSONL file has one document in the `text` key of each record, a folder has
/// the documents of all its text and JSONL files, sorted by name. Decompresses `.gz`, removes a byte order mark, and replaces
/// `\r\n` in text files by `\n`. A file without text is an error.
pub fn read_documents(path: impl AsRef<Path>) -> Result<Vec<String>> {
    let path = path.as_ref();
    if path.is_dir() {
        let files = files_of(path)?;
        if files.is_empty() {
            return Err(Error::unusable(
                path,
                "contains no .txt, .jsonl, .json or .ndjson file (or .gz of these); give a file or another folder",
            ));
        }
        return Ok(files.iter().map(read_documents).collect::<Result<Vec<_>>>()?.concat());
    }
    let mut documents = Vec::new();
    if is_jsonl(path) {
        for_each_record(path, &mut |_, value| {
            documents.push(document_text(value)?);
            Ok(())
        })?;
    } else {
        let text = read_text(path)?;
        documents.push(if text.contains("\r\n") { text.replace("\r\n", "\n") } else { text });
    }
    if documents.iter().all(|document| document.trim().is_empty()) {
        return Err(Error::unusable(path, "contains no text"));
    }
    Ok(documents)
}

/// The `text` key of a record.
fn document_text(mut value: Value) -> Result<String, String> {
    match value.get_mut("text").map(Value::take) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("\"text\" is {}; it must be a string", kind(&other))),
        None => Err(format!(
            "a record of text data must be an object with the key \"text\"; this one is {}. To train on conversations, use \
             `llm-train finetune`",
            described(&value)
        )),
    }
}

/// The type of a JSON value, with an article.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Describes a record in an error message: the keys of an object, or the type of another value.
pub(crate) fn described(value: &Value) -> String {
    match value.as_object() {
        Some(object) => format!("an object with the keys {:?}", object.keys().collect::<Vec<_>>()),
        None => kind(value).to_owned(),
    }
}

fn is_jsonl(path: &Path) -> bool {
    let name = path.to_string_lossy();
    let name = name.trim_end_matches(".gz");
    [".jsonl", ".json", ".ndjson"].iter().any(|ending| name.ends_with(ending))
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
    fn reads_documents_from_text_jsonl_gzip_and_folders() {
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
    fn byte_order_marks_and_crlf_line_ends_are_normalised() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let text = "\u{feff}one\r\ntwo\u{feff}\r\n";
        std::fs::write(path("a.txt"), text).unwrap();
        let mut gz = GzEncoder::new(File::create(path("b.txt.gz")).unwrap(), Compression::fast());
        gz.write_all(text.as_bytes()).unwrap();
        gz.finish().unwrap();
        std::fs::write(path("c.jsonl"), "\u{feff}{\"text\": \"one\"}\r\n\r\n{\"text\": \"two\\r\"}\r\n").unwrap();
        std::fs::write(path("d.json"), "[{\"text\": \"three\"}]").unwrap();
        let expected = ["one\ntwo\u{feff}\n", "one\ntwo\u{feff}\n", "one", "two\r", "three"];
        assert_eq!(read_documents(dir.path()).unwrap(), expected);
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
        let keys = message("a.jsonl", b"{\"text\": \"x\"}\n{\"question\": 1, \"answer\": 2}\n");
        assert!(keys.contains("line 2") && keys.contains(r#"the keys ["question", "answer"]"#), "{keys}");
        assert!(message("e.jsonl", b"{\"text\": null}").contains("\"text\" is null; it must be a string"));
        assert!(message("f.jsonl", b"[1, 2]").contains("this one is a number"));
        assert!(message("g.txt", b"\xff\xfea\0").contains("UTF-16"));
        assert!(message("h.txt", b"\x1f\x8b\x08").contains("to end in .gz"));
        assert!(message("i.jsonl", b"PAR1\x15\x04").contains("Parquet"));
        assert!(message("j.txt", b"\xef\xbb\xbf \r\n").contains("no text"));
        assert!(message("b.jsonl", b"{\"text\": ").contains("line 1: not JSON"));
        assert!(message("c.txt", b"ab\xff").contains("byte 2 is not UTF-8"));
        assert!(message("d.txt", b"").contains("no text"));
        assert!(read_documents(dir.path().join("none.txt")).unwrap_err().to_string().contains("none.txt"));
    }
}
