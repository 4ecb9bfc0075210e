//! Documents on disk between two passes, and the keys of their bands.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::{Error, Result};

/// A document and its place: the index of its file, and its row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub file: u32,
    pub row: u64,
    pub text: String,
}

/// Writes documents, and a file of keys for each band.
pub(super) struct Writer {
    path: PathBuf,
    texts: BufWriter<File>,
    /// The position of each document.
    starts: Vec<u64>,
    end: u64,
    bands: Vec<BufWriter<File>>,
}

impl Writer {
    /// Makes files in the folder `dir`, with `name` in their names.
    pub fn create(dir: &Path, name: &str, bands: usize) -> Result<Self> {
        let create = |path: PathBuf| File::create(&path).map(BufWriter::new).map_err(Error::io(path));
        let path = dir.join(name);
        let bands = (0..bands).map(|band| create(band_path(&path, band))).collect::<Result<_>>()?;
        Ok(Self { texts: create(path.clone())?, path, starts: Vec::new(), end: 0, bands })
    }

    /// Adds a document with the keys of its bands; without keys if it has no n-gram.
    pub fn add(&mut self, file: u32, row: u64, text: &str, keys: &[u64]) -> Result<()> {
        self.starts.push(self.end);
        self.end += HEAD + text.len() as u64;
        self.write(file, row, text, keys).map_err(Error::io(&*self.path))
    }

    fn write(&mut self, file: u32, row: u64, text: &str, keys: &[u64]) -> std::io::Result<()> {
        self.texts.write_all(&file.to_le_bytes())?;
        self.texts.write_all(&row.to_le_bytes())?;
        self.texts.write_all(&(text.len() as u64).to_le_bytes())?;
        self.texts.write_all(text.as_bytes())?;
        let index = (self.starts.len() - 1) as u32;
        for (band, key) in self.bands.iter_mut().zip(keys) {
            band.write_all(&key.to_le_bytes())?;
            band.write_all(&index.to_le_bytes())?;
        }
        Ok(())
    }

    /// Ends the writing.
    pub fn finish(mut self) -> Result<Store> {
        self.texts.flush().map_err(Error::io(&*self.path))?;
        for band in &mut self.bands {
            band.flush().map_err(Error::io(&*self.path))?;
        }
        let file = File::open(&self.path).map_err(Error::io(&*self.path))?;
        Ok(Store { path: self.path, starts: self.starts, file: Mutex::new(file), bands: self.bands.len() })
    }
}

/// Bytes before the text of a document: file, row, length.
const HEAD: u64 = 4 + 8 + 8;

fn band_path(path: &Path, band: usize) -> PathBuf {
    path.with_extension(format!("band{band}"))
}

/// Documents on disk.
pub(super) struct Store {
    path: PathBuf,
    starts: Vec<u64>,
    file: Mutex<File>,
    /// Number of bands.
    pub bands: usize,
}

impl Store {
    /// Number of documents.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// The keys of a band, with the index of the document of each.
    pub fn band(&self, band: usize) -> Result<Vec<(u64, u32)>> {
        const ENTRY: usize = 12;
        let path = band_path(&self.path, band);
        let io = |source| Error::Io { path: path.clone(), source };
        let file = File::open(&path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len() as usize / ENTRY;
        let (mut input, mut entry) = (BufReader::with_capacity(1 << 16, file), [0; ENTRY]);
        let mut keys = Vec::with_capacity(length);
        for _ in 0..length {
            input.read_exact(&mut entry).map_err(io)?;
            let (key, index) = entry.split_at(8);
            let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
            keys.push((number(key), number(index) as u32));
        }
        std::fs::remove_file(&path).map_err(io)?;
        Ok(keys)
    }

    /// A document by its index.
    pub fn get(&self, index: u32) -> Result<Stored> {
        let start = self.starts.get(index as usize).copied().unwrap_or_default();
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let read = file.seek(SeekFrom::Start(start)).and_then(|_| read_one(&mut &*file));
        read.map_err(Error::io(&*self.path))
    }

    /// Calls `each` with every document, and removes the file.
    pub fn for_each(self, each: &mut dyn FnMut(Stored) -> Result<()>) -> Result<()> {
        let mut file = self.file.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.seek(SeekFrom::Start(0)).map_err(Error::io(&*self.path))?;
        let mut input = BufReader::with_capacity(1 << 16, file);
        for _ in &self.starts {
            each(read_one(&mut input).map_err(Error::io(&*self.path))?)?;
        }
        std::fs::remove_file(&self.path).map_err(Error::io(&*self.path))
    }
}

fn read_one(input: &mut impl Read) -> std::io::Result<Stored> {
    let (mut file, mut row, mut length) = ([0; 4], [0; 8], [0; 8]);
    input.read_exact(&mut file)?;
    input.read_exact(&mut row)?;
    input.read_exact(&mut length)?;
    let mut text = vec![0; u64::from_le_bytes(length) as usize];
    input.read_exact(&mut text)?;
    let text = String::from_utf8(text).map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))?;
    Ok(Stored { file: u32::from_le_bytes(file), row: u64::from_le_bytes(row), text })
}
