//! Opens data files: decompresses gzip and zstd, recognises formats by name and by first bytes, and lists the files of folders.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use crate::{Error, Result};

/// The format of a data file, by the end of its name without `.gz` or `.zst`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// JSON objects, one per line, in an array, or in several lines each; also every unknown name.
    Json,
    /// Values separated by this byte, the names of the columns in the first row.
    Table(u8),
    /// Apache Parquet.
    Parquet,
    /// Plain text.
    Text,
    /// Markdown.
    Markdown,
    /// HTML.
    Html,
}

impl Format {
    /// Whether a file of this format is text, not rows.
    pub fn is_text(self) -> bool {
        matches!(self, Self::Text | Self::Markdown | Self::Html)
    }
}

/// The ends of the names of data files, and their formats.
const ENDINGS: [(&str, Format); 12] = [
    (".jsonl", Format::Json),
    (".json", Format::Json),
    (".ndjson", Format::Json),
    (".csv", Format::Table(b',')),
    (".tsv", Format::Table(b'\t')),
    (".parquet", Format::Parquet),
    (".txt", Format::Text),
    (".md", Format::Markdown),
    (".markdown", Format::Markdown),
    (".html", Format::Html),
    (".htm", Format::Html),
    (".xhtml", Format::Html),
];

/// Files of the `datasets` library that describe a dataset and contain no rows of it.
const DESCRIPTIONS: [&str; 4] = ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"];

/// The format of a file, if the end of its name is known.
pub(crate) fn known_format(path: &Path) -> Option<Format> {
    let name = path.to_string_lossy().to_lowercase();
    let name = name.strip_suffix(".gz").or(name.strip_suffix(".zst")).unwrap_or(&name);
    ENDINGS.iter().find(|(ending, _)| name.ends_with(ending)).map(|(_, format)| *format)
}

/// The format of a file; JSON if the end of its name is not known.
pub(crate) fn format(path: &Path) -> Format {
    known_format(path).unwrap_or(Format::Json)
}

/// The files of a folder.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Those whose format is known, sorted by path.
    pub files: Vec<PathBuf>,
    /// The others, sorted by path.
    pub unknown: Vec<PathBuf>,
}

/// The data files at `path`: the file itself, or all files of a folder and its subfolders whose format is known, sorted by path.
/// Hidden files and folders are left out. `text`: whether to include text files. A folder without data files is an error.
pub(crate) fn data_files(path: &Path, text: bool) -> Result<Vec<PathBuf>> {
    Ok(list(path, text)?.files)
}

/// As [`data_files`], with the files of an unknown format.
pub(crate) fn list(path: &Path, text: bool) -> Result<Listing> {
    if !path.is_dir() {
        return Ok(Listing { files: vec![path.to_owned()], unknown: Vec::new() });
    }
    let mut listing = Listing::default();
    collect(path, text, &mut listing)?;
    listing.files.sort();
    listing.unknown.sort();
    if listing.files.is_empty() {
        let also = if text { ".txt, .md, .html, " } else { "" };
        let message = format!(
            "contains no {also}.jsonl, .json, .ndjson, .csv, .tsv or .parquet file (or .gz or .zst of these); give a file or \
             another folder"
        );
        return Err(Error::unusable(path, message));
    }
    Ok(listing)
}

fn collect(dir: &Path, text: bool, listing: &mut Listing) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir))? {
        let entry = entry.map_err(Error::io(dir))?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if name.starts_with('.') || DESCRIPTIONS.contains(&name.as_str()) {
            continue;
        }
        // A link to a folder is not followed, because it may lead back.
        if entry.file_type().map_err(Error::io(&path))?.is_dir() {
            collect(&path, text, listing)?;
        } else if path.is_file() {
            match known_format(&path) {
                Some(format) if text || !format.is_text() => listing.files.push(path),
                _ => listing.unknown.push(path),
            }
        }
    }
    Ok(())
}

/// Opens a file for reading; decompresses `.gz` and `.zst`, and skips a byte order mark. An error if the content is in another
/// format than the name says.
pub(crate) fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    let mut input = decompressed(path)?;
    let start = input.fill_buf().map_err(Error::io(path))?;
    if let Some(message) = unsupported_format(start) {
        return Err(Error::unusable(path, message));
    }
    if start.starts_with(BYTE_ORDER_MARK) {
        input.consume(BYTE_ORDER_MARK.len());
    }
    Ok(input)
}

/// Whether the content of a file starts with a byte order mark. No if its first bytes cannot be decompressed.
pub(crate) fn has_byte_order_mark(path: &Path) -> Result<bool> {
    Ok(decompressed(path)?.fill_buf().is_ok_and(|start| start.starts_with(BYTE_ORDER_MARK)))
}

/// Whether a file is compressed, by the end of its name.
pub(crate) fn is_compressed(path: &Path) -> bool {
    matches!(ending(path).as_deref(), Some("gz" | "zst"))
}

/// The content of a file; that of `.gz` and `.zst` decompressed.
fn decompressed(path: &Path) -> Result<Box<dyn BufRead>> {
    let file = File::open(path).map_err(Error::io(path))?;
    Ok(match ending(path).as_deref() {
        Some("gz") => Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(BufReader::new(file)))),
        Some("zst") => Box::new(BufReader::with_capacity(BUFFER, ZstdFrames::new(file))),
        _ => Box::new(BufReader::with_capacity(BUFFER, file)),
    })
}

/// The last part of the name of a file, in lower case.
fn ending(path: &Path) -> Option<String> {
    path.extension().map(|ending| ending.to_string_lossy().to_lowercase())
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Bytes that are read at once.
const BUFFER: usize = 1 << 16;

/// Reads a UTF-8 text file; decompresses it and removes a byte order mark. If the file is not UTF-8, the error names the
/// position of the first invalid byte, or the format that the file seems to have.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes).map_err(Error::io(path))?;
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::unusable(path, format!("byte {at} is not UTF-8; convert the file to UTF-8 first"))
    })
}

/// Detects other formats by their first bytes; returns the format and the fix.
fn unsupported_format(bytes: &[u8]) -> Option<&'static str> {
    const FORMATS: [(&[u8], &str); 6] = [
        (b"\xff\xfe", "is UTF-16 text; convert it to UTF-8, for example by `iconv -f UTF-16 -t UTF-8`"),
        (b"\xfe\xff", "is UTF-16 text; convert it to UTF-8, for example by `iconv -f UTF-16 -t UTF-8`"),
        (b"\x1f\x8b", "is compressed by gzip; rename it to end in .gz"),
        (b"\x28\xb5\x2f\xfd", "is compressed by zstd; rename it to end in .zst"),
        (b"PAR1", "is a Parquet file; rename it to end in .parquet"),
        (b"PK\x03\x04", "is a zip archive; unpack it first"),
    ];
    FORMATS.iter().find(|(start, _)| bytes.starts_with(start)).map(|(_, message)| *message)
}

/// The content of the frames of a zstd file, one after the other (RFC 8878, section 3). Of a file that is cut or damaged, all that
/// was decompressed comes before the error.
struct ZstdFrames {
    source: BufReader<File>,
    /// Its current frame, finished at the start.
    frame: FrameDecoder,
    /// What is wrong with the rest of the file.
    failure: Option<(ErrorKind, String)>,
}

/// The end of a frame: an empty last block, and a checksum, which is not compared.
const FRAME_END: [u8; 7] = [1, 0, 0, 0, 0, 0, 0];

impl ZstdFrames {
    fn new(file: File) -> Self {
        Self { source: BufReader::new(file), frame: FrameDecoder::new(), failure: None }
    }

    /// Decodes until there are bytes to return. False at the end of the file.
    fn fill(&mut self) -> std::io::Result<bool> {
        let invalid = |error: FrameDecoderError| std::io::Error::new(ErrorKind::InvalidData, error.to_string());
        while self.frame.can_collect() == 0 {
            if !self.frame.is_finished() {
                let blocks = BlockDecodingStrategy::UptoBlocks(1);
                self.frame.decode_blocks(&mut self.source, blocks).map_err(invalid)?;
            } else if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            } else {
                match self.frame.init(&mut self.source) {
                    Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                        length, ..
                    })) => {
                        std::io::copy(&mut self.source.by_ref().take(u64::from(length)), &mut std::io::sink())?;
                    }
                    other => other.map_err(invalid)?,
                }
            }
        }
        Ok(true)
    }
}

impl Read for ZstdFrames {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.failure.is_none()
            && let Err(error) = self.fill()
        {
            self.failure = Some((error.kind(), error.to_string()));
            // The decoder keeps the last bytes for references of later blocks; the end of the frame releases them.
            if !self.frame.is_finished() {
                self.frame.decode_blocks(FRAME_END.as_slice(), BlockDecodingStrategy::UptoBlocks(1)).ok();
            }
        }
        match &self.failure {
            Some((kind, message)) if self.frame.can_collect() == 0 => Err(std::io::Error::new(*kind, message.clone())),
            _ => self.frame.read(buffer),
        }
    }
}
