//! A loopback HTTP server whose answers the test writes.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use llm_hub::{Client, Download, Error, Event, Fetched, Patience};
use sha2::{Digest, Sha256};

/// The head of a request. Names of headers are in lower case.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The offset of `Range: bytes=N-`.
    pub fn offset(&self) -> Option<usize> {
        self.header("range")
            .map(|range| range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap())
    }
}

pub struct Server {
    pub url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// A server that answers the `n`-th request (from 0) with `answer`, and then closes the connection.
    pub fn start(answer: impl Fn(usize, &Request, &mut TcpStream) -> Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (requests, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(answer));
        let log = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, answer): (Arc<Mutex<Vec<Request>>>, _) = (Arc::clone(&log), Arc::clone(&answer));
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let Some(request) = read_head(&stream) else { return };
                    let n = {
                        let mut log = log.lock().unwrap();
                        log.push(request.clone());
                        log.len() - 1
                    };
                    // The client may have gone.
                    let _ = answer(n, &request, &mut stream);
                });
            }
        });
        Self { url, requests }
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.url)
    }
}

fn read_head(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let first = lines.next()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let headers = lines.take_while(|line| !line.is_empty());
    let headers = headers.filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_lowercase(), value.trim().to_owned()))
    });
    Some(Request { method, path, headers: headers.collect() })
}

/// Writes a status and headers.
pub fn head(stream: &mut TcpStream, status: u16, headers: &[(&str, &str)]) -> Result<()> {
    let mut text = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{text}\r\n").as_bytes())
}

/// Writes the head for the bytes of `data` from the requested offset on, as a correct server does. Returns these bytes.
pub fn range_head<'a>(request: &Request, stream: &mut TcpStream, data: &'a [u8], etag: &str) -> Result<&'a [u8]> {
    let valid = request.header("if-range").is_none_or(|known| known == etag);
    let from = request.offset().filter(|_| valid);
    let length = (data.len() - from.unwrap_or(0)).to_string();
    match from {
        Some(from) => {
            let range = format!("bytes {from}-{}/{}", data.len() - 1, data.len());
            head(stream, 206, &[("Content-Length", &length), ("Content-Range", &range), ("ETag", etag)])?;
        }
        None => head(stream, 200, &[("Content-Length", &length), ("ETag", etag)])?,
    }
    Ok(&data[from.unwrap_or(0)..])
}

/// Answers as a correct server does.
pub fn serve(request: &Request, stream: &mut TcpStream, data: &[u8], etag: &str) -> Result<()> {
    let body = range_head(request, stream, data, etag)?;
    stream.write_all(body)
}

/// Bytes without a pattern (xorshift64, Marsaglia 2003).
pub fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut numbers = Numbers(seed);
    (0..len).map(|_| numbers.next() as u8).collect()
}

pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 16
    }
}

pub fn sha256(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Short waits, for tests.
pub fn patience() -> Patience {
    let [silence, first_wait, longest_wait] = [400, 2, 2000].map(Duration::from_millis);
    Patience { silence, tries: 4, first_wait, longest_wait }
}

/// A folder for one file.
pub struct Target {
    pub dir: tempfile::TempDir,
    pub path: PathBuf,
}

impl Target {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.bin");
        Self { dir, path }
    }

    /// Fetches with short waits.
    pub fn fetch<'a>(
        &'a self,
        url: &'a str,
        change: impl FnOnce(&mut Download<'a>),
    ) -> std::result::Result<Fetched, Error> {
        self.fetch_with(patience(), url, change)
    }

    /// Fetches with one try.
    pub fn try_once<'a>(
        &'a self,
        url: &'a str,
        change: impl FnOnce(&mut Download<'a>),
    ) -> std::result::Result<Fetched, Error> {
        self.fetch_with(Patience { tries: 1, ..patience() }, url, change)
    }

    fn fetch_with<'a>(
        &'a self,
        patience: Patience,
        url: &'a str,
        change: impl FnOnce(&mut Download<'a>),
    ) -> std::result::Result<Fetched, Error> {
        let mut download = Download::new(url, &self.path);
        change(&mut download);
        let mut last = 0;
        Client::new(patience).fetch(&download, &mut |event| {
            if let Event::Bytes { done, total } = event {
                assert!(total.is_none_or(|total| done <= total), "{done} of {total:?}");
                last = done;
            }
        })
    }

    pub fn content(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }

    /// Bytes in the part file.
    pub fn part(&self) -> usize {
        std::fs::metadata(part(&self.path)).map_or(0, |metadata| metadata.len() as usize)
    }

    /// All files in the folder.
    pub fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

pub fn part(path: &Path) -> PathBuf {
    path.with_file_name("data.bin.part")
}
