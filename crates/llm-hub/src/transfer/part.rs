//! The `.part` file: what has arrived of a file, with its checksum.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use llm_files::Lock;
use sha2::{Digest, Sha256};

use super::http::Again;
use super::source::Answer;
use super::{Download, Event, Failed, Fetched};
use crate::Error;

/// Time between two looks at a lock that another process has.
const POLL: Duration = Duration::from_millis(200);

/// The state of a file before its transfer.
pub(super) enum Start {
    /// It is there, and as expected.
    There(Fetched),
    /// It is to be fetched; a part of it may be there.
    Open(Box<Part>),
}

/// An incomplete file that this process writes.
pub(super) struct Part {
    path: PathBuf,
    etag_path: PathBuf,
    /// The lock file to delete at the end.
    own_lock: Option<PathBuf>,
    _lock: Lock,
    file: File,
    len: u64,
    hash: Sha256,
    etag: Option<String>,
    commit: Option<String>,
    /// The expected length and sha256, given or said by the hub.
    length: Option<u64>,
    sha256: Option<String>,
    received: u64,
    /// Whether the first bytes are from an earlier call.
    resumed: bool,
    /// Answers 416 in a row although bytes are missing.
    refused: u32,
}

impl Part {
    /// Locks and opens the part file of a download. Waits while another process fetches the same file.
    pub fn open(download: &Download, observe: &mut dyn FnMut(Event)) -> Result<Start, Error> {
        let to = download.to;
        let Some(name) = to.file_name() else { return Err(Error::io(to)(ErrorKind::InvalidFilename.into())) };
        let folder = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let own_lock = download.lock.is_none().then(|| {
            let mut lock = OsString::from(".");
            lock.push(name);
            lock.push(".lock");
            folder.join(lock)
        });
        // A complete file needs no lock: the folder may be read-only.
        if let Some(fetched) = there(download, observe)? {
            return Ok(Start::There(fetched));
        }
        let lock = wait_for_lock(download.lock.or(own_lock.as_deref()).unwrap_or(to), observe)?;
        if let Some(fetched) = there(download, observe)? {
            own_lock.map(fs::remove_file);
            return Ok(Start::There(fetched));
        }
        let (path, etag_path) = (with_suffix(to, ".part"), with_suffix(to, ".part.etag"));
        let open = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let mut file = open.map_err(Error::io(&path))?;
        let (hash, len) = hash_file(&mut file, &path, download.length, observe)?;
        let etag = fs::read_to_string(&etag_path).ok().filter(|etag| is_strong(etag));
        let (length, sha256) = (download.length, download.sha256.map(str::to_lowercase));
        let (commit, received, resumed, refused) = (None, 0, len > 0, 0);
        Ok(Start::Open(Box::new(Self {
            path,
            etag_path,
            own_lock,
            _lock: lock,
            file,
            len,
            hash,
            etag,
            commit,
            length,
            sha256,
            received,
            resumed,
            refused,
        })))
    }

    /// Number of bytes that are there.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Number of bytes that this call received.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// The strong etag of the bytes.
    pub fn etag(&self) -> Option<&str> {
        self.etag.as_deref()
    }

    /// The expected sha256.
    pub fn sha256(&self) -> Option<&str> {
        self.sha256.as_deref()
    }

    /// Whether the expected number of bytes is there.
    pub fn is_complete(&self) -> bool {
        self.length == Some(self.len)
    }

    /// Compares an answer with what is expected and prepares the file for its body.
    pub fn expect(&mut self, answer: &Answer, download: &Download) -> Result<(), Failed> {
        self.refused = 0;
        if self.sha256.is_none() {
            self.sha256.clone_from(&answer.sha256);
        }
        if answer.commit.is_some() {
            self.commit.clone_from(&answer.commit);
        }
        if let (Some(expected), Some(found)) = (self.length, answer.total)
            && expected != found
        {
            return Err(Error::Length { url: download.url.to_owned(), expected, found }.into());
        }
        let etag = answer.etag.clone().filter(|etag| is_strong(etag));
        if answer.start > 0 && self.etag.is_some() && etag.is_some() && self.etag != etag {
            self.restart()?;
            return Err(Failed::Again(Again::after_a_wait("the file on the server has changed".to_owned())));
        }
        if answer.start == 0 {
            self.restart()?;
            if let Some(etag) = &etag {
                let write = llm_files::write_atomic(&self.etag_path, |out| out.write_all(etag.as_bytes()));
                write.map_err(Error::io(&self.etag_path))?;
            }
            self.etag = etag;
        } else if answer.start != self.len {
            let reason = format!("the server sent bytes from {} on instead of {}", answer.start, self.len);
            self.restart()?;
            return Err(Failed::Again(Again::after_a_wait(reason)));
        }
        if let Some(total) = answer.total {
            check_space(download.to, total.saturating_sub(self.len))?;
        }
        Ok(())
    }

    /// Handles an answer 416. The file is complete, or the server is wrong for once, or the part is of another file.
    pub fn nothing_left(&mut self, url: &str, total: Option<u64>) -> Result<(), Failed> {
        if total.or(self.length) == Some(self.len) {
            return self.check(url);
        }
        self.refused += 1;
        if self.refused > 1 || total.is_none_or(|total| total < self.len) {
            self.restart()?;
        }
        Err(Failed::Again(Again::after_a_wait("the server has no bytes from this offset on (416)".to_owned())))
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(Error::io(&self.path))?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        self.received += bytes.len() as u64;
        Ok(())
    }

    /// Compares a complete part with the expected length and checksum.
    pub fn check(&mut self, url: &str) -> Result<(), Failed> {
        let (url, found_length) = (url.to_owned(), self.len);
        let found = hex(&self.hash.clone().finalize());
        let wrong = match (self.length, &self.sha256) {
            (Some(expected), _) if expected != found_length => Error::Length { url, expected, found: found_length },
            (_, Some(expected)) if *expected != found => Error::Sha256 { url, expected: expected.clone(), found },
            _ => return Ok(()),
        };
        // The bytes of an earlier call may be the wrong ones.
        let resumed = self.resumed;
        self.restart()?;
        match resumed {
            true => Err(Failed::Again(Again::after_a_wait("the bytes of an earlier call were wrong".to_owned()))),
            false => {
                self.remove();
                Err(wrong.into())
            }
        }
    }

    /// Begins from the first byte.
    pub fn restart(&mut self) -> Result<(), Error> {
        self.file.set_len(0).and_then(|()| self.file.rewind()).map_err(Error::io(&self.path))?;
        (self.len, self.hash, self.etag, self.resumed) = (0, Sha256::new(), None, false);
        // Without a part an old etag does no harm.
        let _ = fs::remove_file(&self.etag_path);
        Ok(())
    }

    /// Renames the complete part to its final name.
    pub fn finish(self, download: &Download) -> Result<Fetched, Error> {
        let to = download.to;
        self.file.sync_all().map_err(Error::io(&self.path))?;
        fs::rename(&self.path, to).map_err(Error::io(to))?;
        let folder = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        llm_files::sync_folder(folder).map_err(Error::io(folder))?;
        self.remove();
        let (length, sha256) = (self.len, hex(&self.hash.finalize()));
        Ok(Fetched { length, sha256, commit: self.commit, received: self.received })
    }

    /// Deletes a part without a byte. The lock file stays: another process may wait for it.
    pub fn remove_if_empty(&self) {
        if self.len == 0 {
            let _ = fs::remove_file(&self.path);
            let _ = fs::remove_file(&self.etag_path);
        }
    }

    /// Deletes the files of the transfer. Those that cannot be deleted do no harm.
    fn remove(&self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(&self.etag_path);
        if let Some(lock) = &self.own_lock {
            let _ = fs::remove_file(lock);
        }
    }
}

/// The file of a download that is there; an error if it is not as expected.
fn there(download: &Download, observe: &mut dyn FnMut(Event)) -> Result<Option<Fetched>, Error> {
    let path = download.to;
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path)(error)),
    };
    let changed = |message: String| Error::Changed { path: path.to_owned(), message };
    let length = file.metadata().map_err(Error::io(path))?.len();
    if let Some(expected) = download.length.filter(|expected| *expected != length) {
        return Err(changed(format!("has {length} bytes, {expected} were expected")));
    }
    let (hash, length) = hash_file(&mut file, path, Some(length), observe)?;
    let sha256 = hex(&hash.finalize());
    match download.sha256.filter(|expected| !expected.eq_ignore_ascii_case(&sha256)) {
        Some(expected) => Err(changed(format!("has sha256 {sha256}, {expected} was expected"))),
        None => Ok(Some(Fetched { length, sha256, commit: None, received: 0 })),
    }
}

/// Checksum and length of a file that is open at its start.
fn hash_file(
    file: &mut File,
    path: &Path,
    total: Option<u64>,
    observe: &mut dyn FnMut(Event),
) -> Result<(Sha256, u64), Error> {
    let (mut hash, mut len, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 18]);
    loop {
        let read = file.read(&mut buffer).map_err(Error::io(path))?;
        if read == 0 {
            file.seek(SeekFrom::Start(len)).map_err(Error::io(path))?;
            return Ok((hash, len));
        }
        hash.update(&buffer[..read]);
        len += read as u64;
        observe(Event::Bytes { done: len, total });
    }
}

fn wait_for_lock(path: &Path, observe: &mut dyn FnMut(Event)) -> Result<Lock, Error> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
    }
    let mut said: Option<Instant> = None;
    loop {
        if let Some(lock) = Lock::try_acquire(path).map_err(Error::io(path))? {
            return Ok(lock);
        }
        if said.is_none_or(|said| said.elapsed() >= Duration::from_secs(10)) {
            observe(Event::Wait { reason: "another process fetches this file", wait: POLL });
            said = Some(Instant::now());
        }
        std::thread::sleep(POLL);
    }
}

/// An error if the disk of `path` has less than `needed` bytes. A disk that does not tell is tried.
fn check_space(path: &Path, needed: u64) -> Result<(), Error> {
    let folder = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match fs4::available_space(folder) {
        Ok(free) if free < needed => Err(Error::DiskSpace { path: path.to_owned(), needed, free }),
        _ => Ok(()),
    }
}

/// A weak etag does not identify bytes (RFC 9110, section 8.8.3).
fn is_strong(etag: &str) -> bool {
    etag.len() > 2 && etag.starts_with('"') && etag.ends_with('"')
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
