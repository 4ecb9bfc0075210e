//! Limits: size, time, waiting requests, clients that are slow or gone, shutdown.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use llm_engine::EngineOptions;
use llm_model::Head;
use llm_serve::ServeOptions;
use serde_json::json;

use crate::{Test, chat, complete, engine_options};

fn limited(change: impl FnOnce(&mut ServeOptions)) -> Test {
    Test::with(Head::LanguageModel, None, engine_options(), change)
}

/// Sends raw bytes and reads all that comes back.
fn raw(test: &Test, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(&test.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(bytes).unwrap();
    let mut text = Vec::new();
    stream.read_to_end(&mut text).ok();
    String::from_utf8_lossy(&text).into_owned()
}

/// Waits until the metrics have this line.
fn wait_for(test: &Test, line: &str) {
    let start = Instant::now();
    while !test.get("/metrics").1.lines().any(|found| found == line) {
        assert!(start.elapsed() < Duration::from_secs(20), "{line} in {}", test.get("/metrics").1);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_body_that_is_too_large_is_refused_before_it_is_read() {
    let test = limited(|options| options.max_body = 1000);
    let announced = raw(&test, b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 67108864\r\n\r\n");
    assert!(announced.starts_with("HTTP/1.1 413 ") && announced.contains("\"param\":null"), "{announced}");
    let chunk = format!("{:x}\r\n{}\r\n", 2000, "x".repeat(2000));
    let chunked =
        format!("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}");
    assert!(raw(&test, chunked.as_bytes()).starts_with("HTTP/1.1 413 "));
    test.post("/v1/completions", &complete("a", json!({"max_tokens": 1})));
}

#[test]
fn slow_headers_and_bodies_end_in_time() {
    let quick = Duration::from_millis(300);
    let test = limited(|options| (options.header_timeout, options.body_timeout) = (quick, quick));
    let start = Instant::now();
    raw(&test, b"POST /v1/completions HTTP/1.1\r\nHost: loc");
    let body = raw(&test, b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{");
    assert!(body.starts_with("HTTP/1.1 408 "), "{body}");
    assert!(raw(&test, b"").is_empty(), "an idle connection is closed");
    assert!(start.elapsed() < Duration::from_secs(10));
    let old = raw(&test, b"GET /health HTTP/1.0\r\n\r\n");
    assert!(old.contains(" 200 OK"), "{old}");
}

#[test]
fn a_full_queue_refuses_at_once_with_the_time_to_wait() {
    let engine = EngineOptions { max_queue: 1, ..engine_options() };
    let test = Test::with(Head::LanguageModel, None, engine, |_| ());
    let long = complete("the cat", json!({"n": 128, "max_tokens": 500})).to_string();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| abandoned(&test, &long, &done));
        wait_for(&test, "llm_requests_running 128.0");
        scope.spawn(|| abandoned(&test, &long, &done));
        wait_for(&test, "llm_requests_waiting 1.0");
        let start = Instant::now();
        let (status, headers, text) = test.send("/v1/completions", &long);
        let took = start.elapsed();
        done.store(true, SeqCst);
        assert_eq!(status, 429, "{text}");
        assert!(headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
        assert!(text.contains("\"code\":\"rate_limit_exceeded\"") && took < Duration::from_secs(2), "{text} {took:?}");
    });
}

/// Sends a request, and goes away when the test has seen what it wanted.
fn abandoned(test: &Test, body: &str, done: &AtomicBool) {
    let mut stream = TcpStream::connect(&test.address).unwrap();
    let head =
        format!("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    let start = Instant::now();
    while !done.load(SeqCst) && start.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_request_whose_client_is_gone_ends() {
    let test = Test::new();
    for stream in [false, true] {
        let body = complete("the cat", json!({"n": 64, "max_tokens": 500, "stream": stream})).to_string();
        let mut socket = TcpStream::connect(&test.address).unwrap();
        let head =
            format!("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        socket.write_all(head.as_bytes()).unwrap();
        wait_for(&test, "llm_requests_running 64.0");
        drop(socket);
        wait_for(&test, &format!("llm_requests_cancelled_total {}", 1 + u8::from(stream)));
        wait_for(&test, "llm_requests_running 0.0");
    }
}

#[test]
fn a_client_that_does_not_read_is_disconnected() {
    let quick = Duration::from_millis(300);
    let engine = EngineOptions { stall_timeout: quick, ..engine_options() };
    let test = Test::with(Head::LanguageModel, None, engine, |options| options.stall_timeout = quick);
    // Enough to fill the buffers of the system, which may be some megabytes.
    let body = complete("the cat", json!({"n": 128, "max_tokens": 500, "stream": true, "logprobs": 20})).to_string();
    let mut socket = TcpStream::connect(&test.address).unwrap();
    let head =
        format!("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    socket.write_all(head.as_bytes()).unwrap();
    wait_for(&test, "llm_requests_cancelled_total 1");
    test.post("/v1/completions", &complete("a", json!({"max_tokens": 1})));
}

#[test]
fn shutdown_ends_what_runs_and_refuses_what_comes() {
    let mut test = Test::new();
    let address = test.address.clone();
    let server = test.server.take().unwrap();
    let body = chat("the cat", json!({"max_tokens": 480, "ignore_eos": true}));
    let whole = test.post("/v1/chat/completions", &body)["choices"].clone();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| test.post("/v1/chat/completions", &body)["choices"].clone());
        wait_for(&test, "llm_requests_running 1.0");
        server.shutdown(Duration::from_secs(20));
        assert_eq!(running.join().unwrap(), whole, "a request that runs is answered");
    });
    assert!(TcpStream::connect(&address).is_err(), "nothing listens");
}

#[test]
fn shutdown_does_not_wait_longer_than_its_deadline() {
    let mut test = Test::new();
    let server = test.server.take().unwrap();
    let body = complete("the cat", json!({"n": 128, "max_tokens": 500}));
    std::thread::scope(|scope| {
        let running = scope.spawn(|| test.send("/v1/completions", &body.to_string()));
        wait_for(&test, "llm_requests_running 128.0");
        let start = Instant::now();
        server.shutdown(Duration::from_millis(100));
        assert!(start.elapsed() < Duration::from_secs(10));
        let (status, _, text) = running.join().unwrap();
        assert!(status == 503 && text.contains("\"error\""), "{status} {text}");
    });
}
