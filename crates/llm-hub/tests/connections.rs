//! Slow and silent connections, several processes, and servers that cannot be reached.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod server;

use std::io::Write;
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use llm_hub::{Client, Download, Error};
use server::{Numbers, Server, Target, bytes, head, part, patience, range_head, serve, sha256};

const ETAG: &str = "\"v1\"";

#[test]
fn a_slow_connection_is_not_a_silent_one() {
    let data = bytes(16, 1);
    let server = Server::start(move |n, request, stream| {
        let body = range_head(request, stream, &data, ETAG)?;
        // 1.6 s in all, four times the silence that is allowed.
        for byte in body {
            std::thread::sleep(Duration::from_millis(if n == 0 { 100 } else { 0 }));
            stream.write_all(&[*byte])?;
        }
        Ok(())
    });
    let target = Target::new();
    target.try_once(&server.url("a"), |_| {}).unwrap();
    assert_eq!(server.requests().len(), 1);
}

/// A transfer that meets every fault: a redirect with a length of its own, an end at 42 %, then 429, 416, a silence in mid-body.
#[test]
fn a_transfer_survives_redirect_cut_429_416_and_silence() {
    let data = bytes(100_000, 2);
    let expected = data.clone();
    let server = Server::start(move |n, request, stream| match (n, request.path.as_str()) {
        (_, "/a") => {
            head(stream, 302, &[("Location", "/b"), ("Content-Length", "1000000")])?;
            stream.write_all(&[b'x'; 100])
        }
        (1, _) => {
            let body = range_head(request, stream, &data, ETAG)?;
            stream.write_all(&body[..42_000])
        }
        (3, _) => head(stream, 429, &[("Retry-After", "1"), ("Content-Length", "0")]),
        (5, _) => head(stream, 416, &[("Content-Range", "bytes */100000"), ("Content-Length", "0")]),
        (7, _) => {
            let body = range_head(request, stream, &data, ETAG)?;
            for byte in &body[..5] {
                std::thread::sleep(Duration::from_millis(200));
                stream.write_all(&[*byte])?;
            }
            std::thread::sleep(Duration::from_secs(20));
            stream.write_all(&body[5..])
        }
        _ => serve(request, stream, &data, ETAG),
    });
    let target = Target::new();
    target.try_once(&server.url("a"), |_| {}).unwrap_err();
    let start = Instant::now();
    let fetched = target.fetch(&server.url("a"), |_| {}).unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let offsets: Vec<_> = server.requests().iter().filter(|r| r.path == "/b").map(server::Request::offset).collect();
    assert_eq!(offsets, [None, Some(42_000), Some(42_000), Some(42_000), Some(42_005)]);
    assert_eq!(fetched.received, 58_000);
    assert_eq!(fetched.sha256, sha256(&expected));
    assert_eq!(target.files(), ["data.bin"]);
}

#[test]
fn silence_before_the_headers_ends_a_try_too() {
    let data = bytes(1000, 3);
    let server = Server::start(move |n, request, stream| {
        if n == 0 {
            std::thread::sleep(Duration::from_secs(5));
        }
        serve(request, stream, &data, ETAG)
    });
    let start = Instant::now();
    Target::new().fetch(&server.url("a"), |_| {}).unwrap();
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[test]
fn two_transfers_of_one_file_are_one() {
    let data = bytes(100_000, 4);
    let server = Server::start(move |_, request, stream| {
        std::thread::sleep(Duration::from_millis(300));
        serve(request, stream, &data, ETAG)
    });
    let (target, url) = (Target::new(), server.url("a"));
    let received: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| target.fetch(&url, |_| {}).unwrap().received)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(received.iter().sum::<u64>(), 100_000, "{received:?}");
    assert_eq!(server.requests().len(), 1);
    assert_eq!(target.files(), ["data.bin"]);
}

#[test]
fn a_server_that_cannot_be_reached_fails_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/a", listener.local_addr().unwrap());
    drop(listener);
    let start = Instant::now();
    let error = Target::new().fetch(&url, |_| {}).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }) && !error.is_callers_fault(), "{error}");
    let error = Target::new().fetch("http://no-such-host.invalid/a", |_| {}).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_refusal_and_a_wrong_address_are_the_callers_fault() {
    let server = Server::start(|_, request, stream| {
        head(stream, if request.path == "/private" { 403 } else { 404 }, &[("Content-Length", "0")])
    });
    for (path, advice) in [("private", "HF_TOKEN"), ("none", "check the name")] {
        let error = Target::new().fetch(&server.url(path), |_| {}).unwrap_err();
        assert!(error.is_callers_fault() && error.to_string().contains(advice), "{error}");
    }
    assert_eq!(server.requests().len(), 2);
    let target = Target::new();
    target.fetch(&server.url("none"), |_| {}).unwrap_err();
    assert_eq!(target.files(), [".data.bin.lock"]);
    for url in ["ftp://host/a", "text", "/data/a"] {
        let error = Target::new().fetch(url, |_| {}).unwrap_err();
        assert!(error.is_callers_fault() && error.to_string().contains("https://"), "{error}");
    }
    let error = Target::new().fetch("file:///no/such/file", |_| {}).unwrap_err();
    assert_eq!(error.to_string(), "/no/such/file: no such file or folder");
}

#[test]
fn the_space_on_the_disk_is_checked_first() {
    let length = (1_u64 << 60).to_string();
    let server = Server::start(move |_, _, stream| {
        head(stream, 200, &[("Content-Length", &length)])?;
        stream.write_all(&[0; 100])
    });
    let target = Target::new();
    let error = target.fetch(&server.url("a"), |_| {}).unwrap_err();
    assert!(matches!(error, Error::DiskSpace { needed, .. } if needed == 1 << 60), "{error}");
    assert_eq!(target.part(), 0);
}

#[test]
fn a_local_file_is_resumed_and_checked_like_a_remote_one() {
    let (data, target) = (bytes(5000, 5), Target::new());
    let origin = target.dir.path().join("origin a.bin");
    std::fs::write(&origin, &data).unwrap();
    std::fs::write(part(&target.path), &data[..2000]).unwrap();
    let (url, sum) = (format!("file://{}/origin%20a.bin", target.dir.path().display()), sha256(&data));
    let fetched = target.fetch(&url, |download| download.sha256 = Some(&sum)).unwrap();
    assert_eq!((fetched.received, fetched.sha256), (3000, sum));
    assert_eq!(target.content(), data);
}

/// The program of the next test: fetches the URL of the environment.
#[test]
fn child_that_fetches() {
    let (Some(url), Some(to)) = (std::env::var_os("HUB_TEST_URL"), std::env::var_os("HUB_TEST_TO")) else { return };
    let download = Download::new(url.to_str().unwrap(), to.as_ref());
    Client::new(patience()).fetch(&download, &mut |_| {}).unwrap();
}

#[test]
fn a_process_that_is_killed_at_random_bytes_goes_on_there() {
    let data = bytes(400_000, 6);
    let expected = data.clone();
    let server = Server::start(move |_, request, stream| {
        for piece in range_head(request, stream, &data, ETAG)?.chunks(2000) {
            stream.write_all(piece)?;
            std::thread::sleep(Duration::from_millis(3));
        }
        Ok(())
    });
    let (target, mut numbers) = (Target::new(), Numbers(7));
    let mut kept = Vec::new();
    for round in 0..6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_fetches"])
            .env("HUB_TEST_URL", server.url("a"))
            .env("HUB_TEST_TO", &target.path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        if round == 5 {
            assert!(child.wait().unwrap().success());
            break;
        }
        let until = target.part() + 1 + numbers.next() as usize % 50_000;
        let start = Instant::now();
        while target.part() < until {
            assert!(start.elapsed() < Duration::from_secs(30), "{} of {until} bytes", target.part());
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kept.push(Some(target.part()));
    }
    let offsets: Vec<_> = server.requests().iter().map(server::Request::offset).collect();
    assert_eq!(offsets[0], None);
    assert_eq!(offsets[1..], kept);
    assert_eq!(target.content(), expected);
    // The lock of the killed processes is not left either.
    assert_eq!(target.files(), ["data.bin"]);
}
