use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::*;

/// The texts of the documents with their rows, and the report.
#[allow(clippy::type_complexity, reason = "used by tests only")]
fn read(path: &Path, options: &DocumentOptions) -> Result<(Vec<(usize, String)>, ReadReport)> {
    let mut documents = Vec::new();
    let report = for_each_document(&[path.to_owned()], options, &mut |document| {
        documents.push((document.row, document.text));
        Ok(())
    })?;
    Ok((documents, report))
}

fn texts(path: &Path, options: &DocumentOptions) -> Vec<String> {
    read(path, options).unwrap().0.into_iter().map(|(_, text)| text).collect()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(content).unwrap();
    gz.finish().unwrap()
}

/// The public report on empty and broken rows (returnn#933, graphrag#2424).
#[test]
fn rows_without_text_are_counted_by_kind_and_the_others_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    let rows = "{\"text\": \"\"}\n{\"text\": null}\n\n{\"text\": 5}\n{\"text\": \"good\"}\n{\"title\": \"x\"}\n{\"text\": \"cu";
    std::fs::write(&path, rows).unwrap();
    let (documents, report) = read(&path, &DocumentOptions::default()).unwrap();
    assert_eq!(documents, [(5, "good".to_owned())]);
    let counts =
        [report.documents, report.bytes, report.empty, report.null, report.not_text, report.broken, report.cut];
    assert_eq!(counts, [1, 4, 1, 1, 2, 1, 0]);
    let lines = report.lines();
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert!(
        lines[0].starts_with("1 empty documents are left out: ") && lines[0].ends_with("a.jsonl line 1"),
        "{lines:?}"
    );
    assert!(lines[1].contains("a.jsonl line 2: \"text\" is null"), "{lines:?}");
    assert!(
        lines[2].contains("line 4: \"text\" is a number") && lines[2].contains("line 6: a record of text"),
        "{lines:?}"
    );
    assert!(lines[3].contains("a.jsonl line 7: not JSON"), "{lines:?}");
    let strict = DocumentOptions { strict: true, ..DocumentOptions::default() };
    let error = read(&path, &strict).unwrap_err().to_string();
    assert!(error.contains("a.jsonl line 2: \"text\" is null"), "{error}");
}

/// The public report on compressed files and other formats (datatrove#78, datasets#5053).
#[test]
fn cut_files_give_the_rows_before_the_cut_and_other_formats_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    // Words that do not compress to nothing, so that a half has many blocks.
    let text =
        |row: usize| (0..80).map(|i| format!("w{}", (row * 7919 + i * 104_729) % 99_991)).collect::<Vec<_>>().join(" ");
    let all: Vec<String> = (0..3000).map(text).collect();
    let jsonl: String = all.iter().map(|text| format!("{{\"text\": \"{text}\"}}\n")).collect();
    for (name, bytes) in [
        ("a.jsonl.gz", gzip(jsonl.as_bytes())),
        ("a.jsonl.zst", compress_to_vec(jsonl.as_bytes(), CompressionLevel::Fastest)),
    ] {
        std::fs::write(path(name), &bytes).unwrap();
        assert_eq!(texts(&path(name), &DocumentOptions::default()), all, "{name}");
        std::fs::write(path(name), &bytes[..bytes.len() / 2]).unwrap();
        let (documents, report) = read(&path(name), &DocumentOptions::default()).unwrap();
        let n = documents.len();
        assert!((1000..2000).contains(&n), "{name}: {n} documents of a half");
        assert!(documents.iter().zip(&all).all(|((_, read), text)| read == text), "{name}");
        assert_eq!((report.cut, report.broken), (1, 0), "{name}");
        assert!(report.to_string().contains(&format!("{name}: the compressed file is cut or damaged")), "{report}");
        let strict = DocumentOptions { strict: true, ..DocumentOptions::default() };
        let error = read(&path(name), &strict).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("cut or damaged"), "{error}");
        std::fs::remove_file(path(name)).unwrap();
    }
    std::fs::write(path("a.json"), format!("[{}]", jsonl.trim_end().replace('\n', ","))).unwrap();
    assert_eq!(texts(&path("a.json"), &DocumentOptions::default()), all);
    write_parquet(&path("a.parquet"), &["one", "", "three"]);
    let (documents, report) = read(&path("a.parquet"), &DocumentOptions::default()).unwrap();
    assert_eq!((documents, report.empty), (vec![(1, "one".to_owned()), (3, "three".to_owned())], 1));
}

fn write_parquet(path: &Path, texts: &[&str]) {
    let schema = parse_message_type("message m { required int32 n; required binary text (UTF8); }").unwrap();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema.into(), std::sync::Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut numbers = group.next_column().unwrap().unwrap();
    numbers.typed::<Int32Type>().write_batch(&vec![7; texts.len()], None, None).unwrap();
    numbers.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let texts: Vec<ByteArray> = texts.iter().map(|&text| text.into()).collect();
    column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn text_is_cut_at_the_separator_and_line_ends_beside_it_are_not_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    std::fs::write(
        &path,
        "\u{feff}One.\r\n\r\nTwo.\n<|endoftext|>\n\n  three<|endoftext|>\n<|endoftext|>four\n<|endoftext|>\n",
    )
    .unwrap();
    let options = DocumentOptions { separator: Some("<|endoftext|>".to_owned()), ..DocumentOptions::default() };
    let (documents, report) = read(&path, &options).unwrap();
    let expected = [(1, "One.\n\nTwo."), (2, "  three"), (4, "four")].map(|(row, text)| (row, text.to_owned()));
    assert_eq!(documents, expected);
    assert_eq!((report.empty, report.with_bom, report.with_crlf), (1, 1, 1));
    // Without a separator it is ordinary text of one document.
    assert_eq!(texts(&path, &DocumentOptions::default()).len(), 1);
    let pages = DocumentOptions { separator: Some("\u{c}".to_owned()), ..DocumentOptions::default() };
    std::fs::write(&path, "page 1\n\u{c}page 2\n").unwrap();
    assert_eq!(texts(&path, &pages), ["page 1", "page 2"]);
    let empty = DocumentOptions { separator: Some(String::new()), ..DocumentOptions::default() };
    assert!(read(&path, &empty).unwrap_err().to_string().contains("separator of documents is empty"));
}

#[test]
fn invalid_utf_8_between_separators_leaves_out_one_document() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    std::fs::write(&path, b"one|t\xffwo|three").unwrap();
    let options = DocumentOptions { separator: Some("|".to_owned()), ..DocumentOptions::default() };
    let (documents, report) = read(&path, &options).unwrap();
    assert_eq!(documents.into_iter().map(|(row, _)| row).collect::<Vec<_>>(), [1, 3]);
    assert!(report.to_string().contains("a.txt document 2: byte 1 is not UTF-8"), "{report}");
}

#[test]
fn folders_are_walked_in_order_and_files_of_unknown_kind_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    write("b/2.TXT", "two");
    write("a/x/1.Jsonl", "{\"text\": \"one\"}");
    write("c.md", "# *three*");
    write("d.HTML", "<p>four</p>");
    write("e.csv", "n,text\n1,five\n2,\n");
    write("f.tsv", "n\ttext\n1\tsix\n");
    write(".hidden/no.txt", "hidden");
    write("g.py", "print()");
    write("h.png", "x");
    let (documents, report) = read(dir.path(), &DocumentOptions::default()).unwrap();
    let texts_of = |documents: Vec<(usize, String)>| documents.into_iter().map(|(_, text)| text).collect::<Vec<_>>();
    assert_eq!(texts_of(documents), ["one", "two", "# *three*", "<p>four</p>", "five", "six"]);
    assert_eq!((report.unknown_files, report.null), (2, 1));
    let line = &report.lines()[1];
    assert!(
        line.starts_with("2 files of an unknown kind are not read") && line.contains("g.py") && line.contains("h.png")
    );
    let strip = DocumentOptions { markup: Markup::Strip, ..DocumentOptions::default() };
    assert_eq!(texts(dir.path(), &strip)[2..4], ["three\n", "four\n"]);
    // Files are in the same order and read once, however they are given.
    let twice = [dir.path().join("c.md"), dir.path().to_owned(), dir.path().join("b")];
    assert_eq!(document_files(&twice).unwrap(), document_files(&[dir.path().to_owned()]).unwrap());
    assert_eq!(document_files(&twice).unwrap().len(), 6);
}

#[test]
fn errors_of_the_caller_end_the_reading_and_are_not_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl.gz");
    std::fs::write(&path, gzip(b"{\"text\": \"one\"}\n{\"text\": \"two\"}\n")).unwrap();
    let mut seen = 0;
    let error = for_each_document(std::slice::from_ref(&path), &DocumentOptions::default(), &mut |document| {
        seen += 1;
        Err(Error::Io { path: document.file.to_path_buf(), source: ErrorKind::InvalidData.into() })
    });
    assert!(matches!(error, Err(Error::Io { .. })));
    assert_eq!(seen, 1);
    std::fs::write(&path, gzip(b"{\"text\": null}\n")).unwrap();
    let message = read(&path, &DocumentOptions::default()).unwrap_err().to_string();
    assert!(message.contains("a.jsonl.gz: contains no text; 1 rows without text (null)"), "{message}");
}
