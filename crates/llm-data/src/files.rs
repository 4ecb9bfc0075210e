//! Reading of documents, and reading and writing of JSONL files.

use std::io::Write;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::records::{Limit, for_each_valid_record};
use crate::source::data_files;
use crate::{DocumentOptions, Error, Result, for_each_document};

/// Writes a file atomically; see [`llm_files::write_atomic`].
pub(crate) fn write_atomic(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    llm_files::write_atomic(path, write).map_err(Error::io(path))
}

/// Reads the records of a file or folder (JSONL, a JSON array, CSV, Parquet, also compressed as `.gz` or `.zst`), each with its
/// line number, counted from 1. Skips blank lines. A JSON value may span several lines.
pub fn read_jsonl(path: impl AsRef<Path>) -> Result<Vec<(usize, Value)>> {
    let path = path.as_ref();
    let mut values = Vec::new();
    for_each_valid_record(path, Limit::None, &mut |place, value| {
        values.push((place.number, value));
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

/// Reads all documents of a file or folder into memory, with the default options of [`for_each_document`]. A row that cannot be
/// read is an error, and so is a file without text.
pub fn read_documents(path: impl AsRef<Path>) -> Result<Vec<String>> {
    let options = DocumentOptions { strict: true, ..DocumentOptions::default() };
    let mut documents = Vec::new();
    for file in data_files(path.as_ref(), true)? {
        for_each_document(&[file], &options, &mut |document| {
            documents.push(document.text);
            Ok(())
        })?;
    }
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

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
        std::fs::write(path("notes.doc"), "not read").unwrap();
        std::fs::write(path("Z.MD"), "*four*").unwrap();
        assert_eq!(read_documents(dir.path()).unwrap(), ["*four*", "x", "y", "one\ntwo", "drei"]);
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
