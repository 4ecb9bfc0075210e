//! Documents of text, Markdown, HTML, JSON, CSV and Parquet files, as a stream.

mod markup;
mod pieces;
mod report;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::error::Place;
use crate::records::{Limit, for_each_record_of_file};
use crate::source::{self, Format, has_byte_order_mark, is_compressed, known_format};
use crate::value::{described, kind};
use crate::{Error, Result};
use pieces::Pieces;
pub use report::{Problem, ReadReport};

/// How documents are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DocumentOptions {
    /// The literal that separates the documents of a text file, such as `<|endoftext|>` or a form feed; line ends before and after
    /// it are not part of a document. Without one, a text file is one document.
    pub separator: Option<String>,
    /// What is done with the markup of `.md` and `.html` files.
    pub markup: Markup,
    /// Whether the first problem is an error. Otherwise what cannot be read is left out and counted. Empty documents, byte order
    /// marks, `\r\n` and files of an unknown kind are no errors.
    pub strict: bool,
}

/// What is done with the markup of Markdown and HTML files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Markup {
    /// It is part of the text.
    #[default]
    Keep,
    /// It is removed: the text is what a reader of the page sees, without bullets, numbers of lists and addresses of links.
    Strip,
}

/// A document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its text, not empty, with `\n` as line end and without a byte order mark.
    pub text: String,
    /// The file it is from.
    pub file: Arc<Path>,
    /// The line (JSON, CSV), the row (Parquet) or the number of the document (text), counted from 1 in the file.
    pub row: usize,
}

/// Calls `each` with every document of the files and folders, in their order; the files of a folder and its subfolders are sorted
/// by path. Only one document is in memory, except of a file that is one JSON array. `.gz` and `.zst` are decompressed. The text
/// of a row of JSON, CSV or Parquet is in its key `text`.
///
/// An error if no document is found, if a file cannot be opened or is in another format than its name says, or if `each` returns
/// one. A compressed file that is cut or damaged gives the documents before the cut.
///
/// ```
/// use llm_data::{DocumentOptions, for_each_document};
///
/// let dir = std::env::temp_dir().join(format!("llm-data-documents-{}", std::process::id()));
/// std::fs::create_dir_all(&dir).unwrap();
/// std::fs::write(dir.join("a.txt"), "one<|endoftext|>\ntwo\n<|endoftext|>").unwrap();
/// std::fs::write(dir.join("b.jsonl"), "{\"text\": \"three\"}\n{\"text\": null}\n").unwrap();
///
/// let options = DocumentOptions { separator: Some("<|endoftext|>".to_owned()), ..DocumentOptions::default() };
/// let mut texts = Vec::new();
/// let report = for_each_document(&[dir.clone()], &options, &mut |document| {
///     texts.push(document.text);
///     Ok(())
/// })?;
/// assert_eq!(texts, ["one", "two", "three"]);
/// assert_eq!((report.documents, report.null), (3, 1));
/// # std::fs::remove_dir_all(dir).ok();
/// # Ok::<(), llm_data::Error>(())
/// ```
pub fn for_each_document(
    paths: &[PathBuf],
    options: &DocumentOptions,
    each: &mut dyn FnMut(Document) -> Result<()>,
) -> Result<ReadReport> {
    if options.separator.as_ref().is_some_and(String::is_empty) {
        return Err(Error::EmptySeparator);
    }
    let mut reader = Reader { options, report: ReadReport::default(), each };
    for path in paths {
        let listing = source::list(path, true)?;
        for unknown in &listing.unknown {
            reader.report.add(Problem::UnknownFile, || unknown.display().to_string());
        }
        for file in &listing.files {
            reader.read(file)?;
        }
    }
    match paths.first() {
        Some(path) if reader.report.documents == 0 => {
            let mut message = "contains no text".to_owned();
            for line in reader.report.lines() {
                message += "; ";
                message += &line;
            }
            Err(Error::unusable(path, message))
        }
        _ => Ok(reader.report),
    }
}

/// The files that [`for_each_document`] reads, each once, sorted by path in whatever order the paths are given.
pub fn document_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = BTreeSet::new();
    for path in paths {
        files.extend(source::list(path, true)?.files);
    }
    Ok(files.into_iter().collect())
}

struct Reader<'a> {
    options: &'a DocumentOptions,
    report: ReadReport,
    each: &'a mut dyn FnMut(Document) -> Result<()>,
}

impl Reader<'_> {
    fn read(&mut self, path: &Path) -> Result<()> {
        let file: Arc<Path> = Arc::from(path);
        if has_byte_order_mark(path)? {
            self.report.add(Problem::ByteOrderMark, || path.display().to_string());
        }
        let format = known_format(path).unwrap_or(Format::Text);
        // An error that is not from reading must not be taken for a problem of the file.
        let mut stopped = false;
        let read = match format.is_text() {
            true => self.read_text(&file, format, &mut stopped),
            false => for_each_record_of_file(path, Limit::None, Some("text"), &mut |place, record| {
                self.row(&file, place, record).inspect_err(|_| stopped = true)
            }),
        };
        match read {
            Err(Error::Io { source, .. }) if !stopped && is_compressed(path) && is_damage(source.kind()) => {
                let message = format!("the compressed file is cut or damaged ({source}); the rest of it is not read");
                self.problem(Problem::Cut, Error::unusable(path, message))
            }
            Err(Error::Record { place, message }) if !stopped => {
                let message = format!("{message}; the rest of the file is not read");
                self.problem(Problem::Broken, Error::Record { place, message })
            }
            other => other,
        }
    }

    fn read_text(&mut self, file: &Arc<Path>, format: Format, stopped: &mut bool) -> Result<()> {
        let mut input = source::open(file)?;
        let Some(separator) = &self.options.separator else {
            let mut bytes = Vec::new();
            input.read_to_end(&mut bytes).map_err(Error::io(&**file))?;
            return self.text(file, 1, bytes, format).inspect_err(|_| *stopped = true);
        };
        let mut pieces = Pieces::new(input, separator.as_bytes());
        let mut row = 0;
        while let Some(piece) = pieces.next().map_err(Error::io(&**file))? {
            row += 1;
            self.text(file, row, piece, format).inspect_err(|_| *stopped = true)?;
        }
        Ok(())
    }

    /// A document of a text file.
    fn text(&mut self, file: &Arc<Path>, row: usize, bytes: Vec<u8>, format: Format) -> Result<()> {
        let place = Place { path: file.to_path_buf(), unit: "document", number: row };
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                let message = format!("byte {at} is not UTF-8; convert the file to UTF-8 first");
                return self.problem(Problem::Broken, Error::Record { place, message });
            }
        };
        let text = match (self.options.markup, format) {
            (Markup::Strip, Format::Markdown) => markup::markdown_to_text(&text),
            (Markup::Strip, Format::Html) => markup::html_to_text(&text),
            _ => Ok(text),
        };
        match text {
            Ok(text) => self.document(file, place, text),
            Err(message) => self.problem(Problem::Broken, Error::Record { place, message }),
        }
    }

    /// A row of a file of JSON, CSV or Parquet.
    fn row(&mut self, file: &Arc<Path>, place: Place, record: Result<Value, String>) -> Result<()> {
        let (problem, message) = match record {
            Err(message) => (Problem::Broken, message),
            Ok(mut value) => match value.get_mut("text").map(Value::take) {
                Some(Value::String(text)) => return self.document(file, place, text),
                Some(other) => {
                    let problem = if other.is_null() { Problem::Null } else { Problem::NotText };
                    (problem, format!("\"text\" is {}; it must be a string", kind(&other)))
                }
                None => {
                    let message = format!(
                        "a record of text data must be an object with the key \"text\"; this one is {}. To train on \
                         conversations, use `llm-train finetune`",
                        described(&value)
                    );
                    (Problem::NotText, message)
                }
            },
        };
        self.problem(problem, Error::Record { place, message })
    }

    fn document(&mut self, file: &Arc<Path>, place: Place, mut text: String) -> Result<()> {
        if text.contains("\r\n") {
            text = text.replace("\r\n", "\n");
            self.report.add(Problem::CrLf, || place.to_string());
        }
        // The separator is on a line of its own in most files.
        if place.unit == "document" && self.options.separator.is_some() {
            text.truncate(text.trim_end_matches('\n').len());
            text.drain(..text.len() - text.trim_start_matches('\n').len());
        }
        if text.trim().is_empty() {
            self.report.add(Problem::Empty, || place.to_string());
            return Ok(());
        }
        self.report.documents += 1;
        self.report.bytes += text.len() as u64;
        (self.each)(Document { text, file: Arc::clone(file), row: place.number })
    }

    fn problem(&mut self, problem: Problem, error: Error) -> Result<()> {
        if self.options.strict {
            return Err(error);
        }
        self.report.add(problem, || error.to_string());
        Ok(())
    }
}

/// Whether a decompressor returns errors of this kind for a file that is cut or damaged.
fn is_damage(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::UnexpectedEof | ErrorKind::InvalidData | ErrorKind::InvalidInput)
}

#[cfg(test)]
mod tests;
