//! Files of rows: the kept documents, and the removed ones with the reason.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::{Error, Result};

/// A row of a kept document.
#[derive(Serialize)]
pub(super) struct Kept<'a> {
    pub text: &'a str,
    pub source: &'a str,
    pub row: u64,
}

/// A row of a removed document.
#[derive(Serialize)]
pub(super) struct Excluded<'a> {
    pub step: &'a str,
    pub reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<&'a str>,
    pub source: &'a str,
    pub row: u64,
    pub text: &'a str,
}

/// A JSONL file.
struct Lines {
    path: PathBuf,
    file: BufWriter<File>,
    bytes: usize,
}

impl Lines {
    fn create(path: PathBuf) -> Result<Self> {
        let file = File::create(&path).map(BufWriter::new).map_err(Error::io(&*path))?;
        Ok(Self { path, file, bytes: 0 })
    }

    fn add(&mut self, row: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(row).map_err(|e| Error::io(&*self.path)(e.into()))?;
        line.push(b'\n');
        self.bytes += line.len();
        self.file.write_all(&line).map_err(Error::io(&*self.path))
    }

    fn finish(mut self) -> Result<()> {
        self.file.flush().and_then(|()| self.file.get_ref().sync_all()).map_err(Error::io(&*self.path))
    }
}

/// The files of rows in the folder of the result.
pub(super) struct Output {
    /// The folder of the kept documents.
    dir: PathBuf,
    part: Lines,
    parts: usize,
    excluded: Lines,
}

/// A part is complete when it has this number of bytes.
const PART_BYTES: usize = 256 << 20;

impl Output {
    pub fn create(dir: &Path) -> Result<Self> {
        let excluded = Lines::create(dir.join("excluded.jsonl"))?;
        // A folder of their own, so that it can be given to a reader without the removed documents.
        let dir = dir.join("text");
        std::fs::create_dir(&dir).map_err(Error::io(&*dir))?;
        Ok(Self { part: Lines::create(part_path(&dir, 0))?, dir, parts: 1, excluded })
    }

    pub fn keep(&mut self, row: &Kept) -> Result<()> {
        if self.part.bytes >= PART_BYTES {
            let next = Lines::create(part_path(&self.dir, self.parts))?;
            self.parts += 1;
            std::mem::replace(&mut self.part, next).finish()?;
        }
        self.part.add(row)
    }

    pub fn exclude(&mut self, row: &Excluded) -> Result<()> {
        self.excluded.add(row)
    }

    pub fn finish(self) -> Result<()> {
        self.part.finish()?;
        self.excluded.finish()
    }
}

fn part_path(dir: &Path, part: usize) -> PathBuf {
    dir.join(format!("part-{part:05}.jsonl"))
}
