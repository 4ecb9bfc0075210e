//! Fetches one file: resumes, checks, retries, and renames it into place when it is complete.
//!
//! The bytes arrive in `NAME.part` in the folder of the file; `NAME.part.etag` has the etag of what is in it. A later call asks for
//! the missing bytes only (`Range`, with `If-Range` so that a changed file is sent whole; RFC 9110, sections 13 and 14).

mod http;
mod part;
mod source;
mod tls;

use std::path::Path;
use std::time::Duration;

use crate::Error;
use http::Again;
use part::Part;
use source::Reply;

pub(crate) use http::Page;
pub use source::local_path;

/// How long to wait, and how often to try.
#[derive(Debug, Clone)]
pub struct Patience {
    /// A connection that sends nothing for this long has failed. There is no limit of the total time.
    pub silence: Duration,
    /// Number of tries in a row without a new byte after which a transfer fails; at least 1.
    pub tries: u32,
    /// Wait after the first failed try; it doubles with each further one. `Retry-After` of the server wins.
    pub first_wait: Duration,
    /// Longest wait. If the server asks for more, the transfer fails at once.
    pub longest_wait: Duration,
}

impl Default for Patience {
    /// 30 s of silence, 6 tries, waits from 1 s to 5 minutes.
    fn default() -> Self {
        let [silence, first_wait, longest_wait] = [30, 1, 300].map(Duration::from_secs);
        Self { silence, tries: 6, first_wait, longest_wait }
    }
}

impl Patience {
    /// The wait after the `failed`-th failed try in a row, counted from 1.
    fn wait(&self, failed: u32) -> Duration {
        self.first_wait.saturating_mul(1 << (failed.saturating_sub(1)).min(16)).min(self.longest_wait)
    }
}

/// A file to fetch.
#[derive(Debug, Clone, Copy)]
pub struct Download<'a> {
    /// `https://`, `http://` or `file://`.
    pub url: &'a str,
    /// The file to write; its folder is created. If it exists it is checked and not fetched.
    pub to: &'a Path,
    /// Sent as `Authorization: Bearer` to the server of `url`, and to no other one after a redirect.
    pub token: Option<&'a str>,
    /// The expected length in bytes, if it is known.
    pub length: Option<u64>,
    /// The expected sha256 in hexadecimal, if it is known.
    pub sha256: Option<&'a str>,
    /// The lock file, which is kept [default: `.NAME.lock`, which is deleted at the end].
    pub lock: Option<&'a Path>,
}

impl<'a> Download<'a> {
    /// A file of which nothing is known.
    pub fn new(url: &'a str, to: &'a Path) -> Self {
        Self { url, to, token: None, length: None, sha256: None, lock: None }
    }
}

/// What happens during a transfer.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// Bytes of the file that are there, and its length if it is known.
    Bytes {
        /// Bytes on disk.
        done: u64,
        /// Length of the file.
        total: Option<u64>,
    },
    /// A try has failed, or another process fetches the same file: the transfer goes on after a wait.
    Wait {
        /// Why.
        reason: &'a str,
        /// For how long.
        wait: Duration,
    },
}

/// A file that is there, complete and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Its length in bytes.
    pub length: u64,
    /// Its sha256 in hexadecimal.
    pub sha256: String,
    /// The commit that the hub says it is from.
    pub commit: Option<String>,
    /// Bytes that this call received; 0 if the file was there.
    pub received: u64,
}

/// Fetches files.
#[derive(Debug, Clone)]
pub struct Client {
    agent: ureq::Agent,
    patience: Patience,
}

impl Client {
    /// A client. Proxies are those of `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`; `SSL_CERT_FILE` replaces the built-in root
    /// certificates.
    pub fn new(patience: Patience) -> Self {
        Self { agent: http::agent(&patience), patience }
    }

    /// Fetches a file. Several threads and processes may fetch at once; of two that want the same file one waits for the other.
    ///
    /// An error leaves no file at `to`. What has arrived is kept for the next call, unless its checksum is wrong.
    pub fn fetch(&self, download: &Download, observe: &mut dyn FnMut(Event)) -> Result<Fetched, Error> {
        let mut part = match Part::open(download, observe)? {
            part::Start::There(fetched) => return Ok(fetched),
            part::Start::Open(part) => *part,
        };
        match self.complete(&mut part, download, observe) {
            Ok(()) => part.finish(download),
            Err(error) => {
                part.remove_if_empty();
                Err(error)
            }
        }
    }

    /// Tries until the part is complete.
    fn complete(&self, part: &mut Part, download: &Download, observe: &mut dyn FnMut(Event)) -> Result<(), Error> {
        let (mut most, mut failed) = (part.len(), 0);
        loop {
            let again = match self.attempt(part, download, observe) {
                Ok(()) => return Ok(()),
                Err(Failed::Finally(error)) => return Err(error),
                Err(Failed::Again(again)) => again,
            };
            // Without a connection from the start, more tries only delay the message.
            if again.no_connection && part.received() == 0 {
                return Err(Error::Unreachable { url: download.url.to_owned(), message: again.reason });
            }
            if part.len() > most {
                (most, failed) = (part.len(), 0);
            }
            failed += 1;
            self.pause(download.url, &again, failed, observe)?;
        }
    }

    /// Waits before the next try, or fails after the last one.
    fn pause(&self, url: &str, again: &Again, failed: u32, observe: &mut dyn FnMut(Event)) -> Result<(), Error> {
        let wait = again.after.unwrap_or_else(|| self.patience.wait(failed));
        let too_long = wait > self.patience.longest_wait;
        if failed >= self.patience.tries || too_long {
            let mut message = again.reason.clone();
            if too_long {
                message.push_str(&format!(", and asks to wait for {} s", wait.as_secs()));
            }
            return Err(Error::GaveUp { url: url.to_owned(), message, tries: failed });
        }
        observe(Event::Wait { reason: &again.reason, wait });
        std::thread::sleep(wait);
        Ok(())
    }

    /// One request and its body.
    fn attempt(&self, part: &mut Part, download: &Download, observe: &mut dyn FnMut(Event)) -> Result<(), Failed> {
        // Without an etag or a checksum nothing says that the missing bytes are of the same file.
        if part.len() > 0 && part.etag().is_none() && part.sha256().is_none() {
            part.restart()?;
        }
        if part.len() > 0 && part.is_complete() {
            return part.check(download.url);
        }
        let from = part.len();
        let answer = match self.open(download, from, part.etag())? {
            Reply::Body(answer) => answer,
            Reply::NothingLeft { total } => return part.nothing_left(download.url, total),
        };
        part.expect(&answer, download)?;
        let total = answer.total;
        let mut body = answer.body;
        observe(Event::Bytes { done: part.len(), total });
        let mut buffer = vec![0; 1 << 16];
        loop {
            let read = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) => return Err(Failed::Again(http::interrupted(error, &self.patience))),
            };
            part.write(&buffer[..read])?;
            observe(Event::Bytes { done: part.len(), total });
        }
        match total {
            Some(total) if part.len() < total => {
                let reason = format!("the connection ended after {} of {total} bytes", part.len());
                Err(Failed::Again(Again::after_a_wait(reason)))
            }
            _ => part.check(download.url),
        }
    }

    /// Reads a page of the hub's interface, at most 64 MB.
    pub(crate) fn page(&self, url: &str, token: Option<&str>) -> Result<Page, Error> {
        let mut failed = 0;
        loop {
            let again = match http::page(&self.agent, url, token, &self.patience) {
                Ok(page) => return Ok(page),
                Err(Failed::Finally(error)) => return Err(error),
                Err(Failed::Again(again)) => again,
            };
            if again.no_connection {
                return Err(Error::Unreachable { url: url.to_owned(), message: again.reason });
            }
            failed += 1;
            self.pause(url, &again, failed, &mut |event| {
                if let Event::Wait { reason, wait } = event {
                    tracing::warn!("{url}: {reason}; goes on in {wait:.1?}");
                }
            })?;
        }
    }

    fn open(&self, download: &Download, from: u64, etag: Option<&str>) -> Result<Reply, Failed> {
        match source::local_path(download.url)? {
            Some(path) => Ok(source::open(&path, from, etag)?),
            None => http::open(&self.agent, download, from, etag, &self.patience),
        }
    }
}

/// Why a try failed.
#[derive(Debug)]
enum Failed {
    /// Another try may succeed.
    Again(Again),
    /// Another try would fail too.
    Finally(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Finally(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let waits: Vec<u64> = (1..=10).map(|failed| Patience::default().wait(failed).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
        assert_eq!(Patience::default().wait(u32::MAX).as_secs(), 300);
    }
}
