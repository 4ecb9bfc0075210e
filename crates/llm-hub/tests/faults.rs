//! Transfers from servers that cut, stall, redirect, lie and refuse.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod server;

use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use llm_hub::Error;
use server::{Numbers, Server, Target, bytes, head, range_head, serve, sha256};

const ETAG: &str = "\"v1\"";

#[test]
fn a_file_arrives_whole_and_leaves_nothing_else() {
    let data = bytes(200_000, 1);
    let expected = data.clone();
    let server = Server::start(move |_, request, stream| serve(request, stream, &data, ETAG));
    let target = Target::new();
    let fetched = target.fetch(&server.url("a"), |_| {}).unwrap();
    assert_eq!((fetched.length, fetched.received), (200_000, 200_000));
    assert_eq!(fetched.sha256, sha256(&expected));
    assert_eq!(target.content(), expected);
    assert_eq!(target.files(), ["data.bin"]);
    assert_eq!(server.requests()[0].header("accept-encoding"), Some("identity"));
}

#[test]
fn connections_that_are_cut_at_random_bytes_cost_no_byte_twice() {
    let data = bytes(300_000, 2);
    let (expected, numbers) = (data.clone(), Mutex::new(Numbers(3)));
    let server = Server::start(move |_, request, stream| {
        let body = range_head(request, stream, &data, ETAG)?;
        let cut = 1 + numbers.lock().unwrap().next() as usize % 40_000;
        stream.write_all(&body[..body.len().min(cut)])
    });
    let target = Target::new();
    let fetched = target.fetch(&server.url("a"), |_| {}).unwrap();
    assert!(server.requests().len() > 7, "{} requests", server.requests().len());
    assert_eq!(fetched.received, 300_000);
    assert_eq!(target.content(), expected);
    assert_eq!(fetched.sha256, sha256(&expected));
}

#[test]
fn the_next_call_asks_for_the_missing_bytes_of_the_same_file() {
    let data = bytes(100_000, 4);
    let expected = data.clone();
    let server = Server::start(move |n, request, stream| {
        let body = range_head(request, stream, &data, ETAG)?;
        stream.write_all(if n == 0 { &body[..42_000] } else { body })
    });
    let target = Target::new();
    let error = target.try_once(&server.url("a"), |_| {}).unwrap_err();
    assert!(matches!(error, Error::GaveUp { .. }), "{error}");
    assert_eq!(target.part(), 42_000);
    let fetched = target.try_once(&server.url("a"), |_| {}).unwrap();
    assert_eq!(fetched.received, 58_000);
    let last = server.requests().pop().unwrap();
    assert_eq!((last.header("range"), last.header("if-range")), (Some("bytes=42000-"), Some(ETAG)));
    assert_eq!(target.content(), expected);
    assert_eq!(fetched.sha256, sha256(&expected));
    assert_eq!(target.files(), ["data.bin"]);
}

#[test]
fn a_changed_file_is_fetched_from_its_first_byte() {
    let (old, new) = (bytes(50_000, 5), bytes(40_000, 6));
    let expected = new.clone();
    let server = Server::start(move |n, request, stream| match n {
        0 => {
            let body = range_head(request, stream, &old, ETAG)?;
            stream.write_all(&body[..30_000])
        }
        _ => serve(request, stream, &new, "\"v2\""),
    });
    let target = Target::new();
    target.try_once(&server.url("a"), |_| {}).unwrap_err();
    let fetched = target.try_once(&server.url("a"), |_| {}).unwrap();
    assert_eq!(server.requests()[1].offset(), Some(30_000));
    assert_eq!(fetched.received, 40_000);
    assert_eq!(target.content(), expected);
}

/// Some servers ignore `If-Range` and send the bytes of the new file.
#[test]
fn a_part_of_another_etag_is_not_joined() {
    let (old, new) = (bytes(50_000, 7), bytes(50_000, 8));
    let expected = new.clone();
    let server = Server::start(move |n, request, stream| match n {
        0 => {
            let body = range_head(request, stream, &old, ETAG)?;
            stream.write_all(&body[..30_000])
        }
        _ => {
            let mut request = request.clone();
            request.headers.remove("if-range");
            serve(&request, stream, &new, "\"v2\"")
        }
    });
    let target = Target::new();
    target.try_once(&server.url("a"), |_| {}).unwrap_err();
    target.fetch(&server.url("a"), |_| {}).unwrap();
    assert_eq!(target.content(), expected);
}

#[test]
fn without_an_etag_or_a_checksum_a_part_is_not_continued() {
    let data = bytes(50_000, 9);
    let expected = data.clone();
    let server = Server::start(move |n, request, stream| {
        assert_eq!(request.header("if-range"), None);
        let from = request.offset().unwrap_or(0);
        let (length, range) = ((50_000 - from).to_string(), format!("bytes {from}-49999/50000"));
        let status = if from > 0 { 206 } else { 200 };
        // A weak etag does not identify bytes.
        head(stream, status, &[("Content-Length", &length), ("Content-Range", &range), ("ETag", "W/\"v1\"")])?;
        let body = &data[from..];
        stream.write_all(if n % 2 == 0 { &body[..20_000] } else { body })
    });
    let target = Target::new();
    target.try_once(&server.url("a"), |_| {}).unwrap_err();
    target.try_once(&server.url("a"), |_| {}).unwrap();
    assert_eq!(server.requests()[1].offset(), None);
    assert_eq!(target.content(), expected);

    // The checksum decides at the end.
    let target = Target::new();
    let sum = sha256(&expected);
    target.try_once(&server.url("a"), |download| download.sha256 = Some(&sum)).unwrap_err();
    target.try_once(&server.url("a"), |download| download.sha256 = Some(&sum)).unwrap();
    assert_eq!(server.requests()[3].offset(), Some(20_000));
    assert_eq!(target.content(), expected);
}

#[test]
fn a_redirect_has_its_own_length_and_the_token_stays_with_its_server() {
    let data = bytes(70_000, 10);
    let expected = data.clone();
    let other = Server::start(move |_, request, stream| serve(request, stream, &data, ETAG));
    let to = other.url("blob");
    let server = Server::start(move |_, request, stream| match request.path.as_str() {
        "/a" => head(stream, 307, &[("Location", "/b"), ("Content-Length", "0")]),
        _ => {
            let headers = [("Location", to.as_str()), ("Content-Length", "9"), ("X-Repo-Commit", "c0ffee")];
            head(stream, 302, &headers)?;
            stream.write_all(b"Found at ")
        }
    });
    let target = Target::new();
    let fetched = target.fetch(&server.url("a"), |download| download.token = Some("hf_secret")).unwrap();
    assert_eq!((fetched.length, fetched.commit.as_deref()), (70_000, Some("c0ffee")));
    assert_eq!(target.content(), expected);
    let tokens: Vec<_> = server.requests().iter().map(|r| r.header("authorization").map(str::to_owned)).collect();
    assert_eq!(tokens, [Some("Bearer hf_secret".to_owned()), Some("Bearer hf_secret".to_owned())]);
    assert_eq!(other.requests()[0].header("authorization"), None);
}

#[test]
fn the_checksum_that_the_hub_says_is_enforced() {
    let data = bytes(1000, 11);
    let right = sha256(&data);
    for (said, is_right) in [(right.clone(), true), ("0".repeat(64), false)] {
        let (blob, said) = (data.clone(), format!("\"{said}\""));
        let server = Server::start(move |_, request, stream| match request.path.as_str() {
            "/a" => head(stream, 302, &[("Location", "/b"), ("Content-Length", "0"), ("X-Linked-Etag", &said)]),
            _ => serve(request, stream, &blob, ETAG),
        });
        let target = Target::new();
        assert_eq!(target.fetch(&server.url("a"), |_| {}).is_ok(), is_right);
    }
}

#[test]
fn a_server_that_promises_more_bytes_than_it_sends_is_given_up() {
    let server = Server::start(|_, request, stream| {
        let from = request.offset().unwrap_or(0);
        let range = format!("bytes {from}-999/1000");
        let (status, length) = if from > 0 { (206, 1000 - from) } else { (200, 1000) };
        head(stream, status, &[("Content-Length", &length.to_string()), ("Content-Range", &range), ("ETag", ETAG)])?;
        stream.write_all(&[7; 600][from.min(600)..])
    });
    let target = Target::new();
    let error = target.fetch(&server.url("a"), |_| {}).unwrap_err();
    let Error::GaveUp { tries, .. } = &error else { panic!("{error}") };
    assert_eq!((*tries, target.part()), (4, 600));
    assert!(!error.is_callers_fault() && error.to_string().contains("/a: "), "{error}");
    assert!(!target.path.exists());
}

#[test]
fn another_length_than_the_expected_one_is_an_error() {
    let data = bytes(1000, 12);
    let server = Server::start(move |_, request, stream| serve(request, stream, &data, ETAG));
    let target = Target::new();
    let error = target.fetch(&server.url("a"), |download| download.length = Some(1001)).unwrap_err();
    assert!(matches!(error, Error::Length { expected: 1001, found: 1000, .. }), "{error}");
    assert_eq!(server.requests().len(), 1);

    // The same of a body without a length.
    let server = Server::start(|_, _, stream| {
        head(stream, 200, &[("Transfer-Encoding", "chunked")])?;
        stream.write_all(b"3\r\nabc\r\n0\r\n\r\n")
    });
    let error = target.fetch(&server.url("a"), |download| download.length = Some(4)).unwrap_err();
    assert!(matches!(error, Error::Length { expected: 4, found: 3, .. }), "{error}");
    assert_eq!(target.fetch(&server.url("a"), |_| {}).unwrap().length, 3);
}

#[test]
fn a_206_of_other_bytes_is_not_joined() {
    let data = bytes(1000, 13);
    let expected = data.clone();
    let server = Server::start(move |n, request, stream| match n {
        0 => {
            let body = range_head(request, stream, &data, ETAG)?;
            stream.write_all(&body[..500])
        }
        1 => {
            head(stream, 206, &[("Content-Length", "400"), ("Content-Range", "bytes 600-999/1000"), ("ETag", ETAG)])?;
            stream.write_all(&data[600..])
        }
        _ => serve(request, stream, &data, ETAG),
    });
    let target = Target::new();
    target.fetch(&server.url("a"), |_| {}).unwrap();
    assert_eq!(target.content(), expected);
    assert_eq!(server.requests()[2].offset(), None);
}

#[test]
fn a_416_means_complete_or_wrong_for_once_or_begin_again() {
    // (the 416's Content-Range, offset of the next request, number of requests)
    for (said, next, requests) in
        [("bytes */600", None, 2), ("bytes */1000", Some(600), 3), ("bytes */500", None, 3), ("", None, 3)]
    {
        let data = bytes(1000, 14);
        let server = Server::start(move |n, request, stream| match n {
            0 => {
                let body = range_head(request, stream, &data, ETAG)?;
                stream.write_all(&body[..600])
            }
            1 => head(stream, 416, &[("Content-Range", said), ("Content-Length", "0")]),
            _ => serve(request, stream, &data, ETAG),
        });
        let target = Target::new();
        target.try_once(&server.url("a"), |_| {}).unwrap_err();
        let fetched = target.fetch(&server.url("a"), |_| {}).unwrap();
        assert_eq!(fetched.length, if requests == 2 { 600 } else { 1000 }, "{said}");
        assert_eq!(server.requests().len(), requests, "{said}");
        assert_eq!(server.requests().get(2).and_then(server::Request::offset), next, "{said}");
    }
}

#[test]
fn a_server_that_is_busy_is_asked_again_after_the_time_it_says() {
    let data = bytes(1000, 15);
    let server = Server::start(move |n, request, stream| match n {
        0 => head(stream, 429, &[("Retry-After", "1"), ("Content-Length", "0")]),
        1 => head(stream, 500, &[("Content-Length", "0")]),
        2 => head(stream, 503, &[("Content-Length", "0")]),
        _ => serve(request, stream, &data, ETAG),
    });
    let (target, start) = (Target::new(), Instant::now());
    target.fetch(&server.url("a"), |_| {}).unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(server.requests().len(), 4);
}

#[test]
fn tries_and_waits_are_bounded() {
    let server = Server::start(|_, _, stream| head(stream, 500, &[("Content-Length", "0")]));
    let error = Target::new().fetch(&server.url("a"), |_| {}).unwrap_err();
    assert!(error.to_string().contains("the server answered 500 (4 tries without progress)"), "{error}");
    assert_eq!(server.requests().len(), 4);

    let server = Server::start(|_, _, stream| head(stream, 429, &[("Retry-After", "3600"), ("Content-Length", "0")]));
    let error = Target::new().fetch(&server.url("a"), |_| {}).unwrap_err();
    assert!(error.to_string().contains("answered 429, and asks to wait for 3600 s"), "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_wrong_checksum_leaves_no_file_and_no_part() {
    let data = bytes(1000, 16);
    let (right, wrong) = (sha256(&data), "ab".repeat(32));
    let served = data.clone();
    let server = Server::start(move |_, request, stream| serve(request, stream, &served, ETAG));
    let target = Target::new();
    let error = target.fetch(&server.url("a"), |download| download.sha256 = Some(&wrong)).unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, Error::Sha256 { .. }) && message.contains(&right) && message.contains(&wrong), "{message}");
    assert!(target.files().is_empty(), "{:?}", target.files());

    // Wrong bytes of an earlier call: once more from the start.
    std::fs::write(server::part(&target.path), [0; 300]).unwrap();
    let fetched = target.fetch(&server.url("a"), |download| download.sha256 = Some(&right)).unwrap();
    assert_eq!((fetched.sha256, target.content()), (right, data));
}

#[test]
fn a_file_that_is_there_is_checked_and_not_fetched() {
    let server = Server::start(|_, _, stream| head(stream, 500, &[]));
    let target = Target::new();
    std::fs::write(&target.path, "abc").unwrap();
    // The sha256 of "abc" from FIPS 180-2, appendix B.1.
    let sum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let fetched = target.fetch(&server.url("a"), |download| download.sha256 = Some(sum)).unwrap();
    assert_eq!((fetched.received, fetched.sha256.as_str()), (0, sum));
    let error = target.fetch(&server.url("a"), |download| download.length = Some(4)).unwrap_err();
    assert!(matches!(error, Error::Changed { .. }) && error.is_callers_fault(), "{error}");
    assert_eq!(server.requests().len(), 0);
    assert_eq!(target.files(), ["data.bin"]);
}
