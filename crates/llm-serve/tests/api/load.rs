//! More requests than the server can take, with clients that abort, are slow or send nonsense.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use llm_engine::EngineOptions;
use llm_model::Head;
use serde_json::{Value, json};

use crate::{Test, complete, engine_options};

/// Resident memory of this process in bytes.
#[cfg(target_os = "linux")]
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

fn request(index: usize) -> Value {
    let prompt = ["the cat", "a dog sat on", "the bird sang on the log"][index % 3];
    complete(prompt, json!({"max_tokens": 20 + index % 3, "n": 2}))
}

/// Sends a request, reads a part of the answer slowly, and goes away.
fn vanish(test: &Test, body: &str, part: usize) {
    let Ok(mut socket) = TcpStream::connect(&test.address) else { return };
    let head =
        format!("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let bytes = head.as_bytes();
    socket.write_all(&bytes[..bytes.len() - part % 3]).ok();
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut buffer = [0; 64];
    for _ in 0..part % 7 {
        // Nothing may be there yet.
        socket.read_exact(&mut buffer).ok();
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
#[cfg(target_os = "linux")]
fn every_request_is_answered_or_refused_under_load() {
    let seconds = std::env::var("LLM_SERVE_LOAD_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let engine = EngineOptions { max_queue: 4, max_running: 4, ..engine_options() };
    let test = Test::with(Head::LanguageModel, None, engine, |options| options.stall_timeout = Duration::from_secs(2));
    let idle: Vec<Value> =
        (0..3).map(|index| test.post("/v1/completions", &request(index))["choices"].clone()).collect();
    let (good, refused, bad) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let slowest_refusal = std::sync::Mutex::new(Vec::new());
    let (start, before) = (Instant::now(), memory());
    std::thread::scope(|scope| {
        for client in 0..16 {
            let (test, idle, good, refused, bad, times) = (&test, &idle, &good, &refused, &bad, &slowest_refusal);
            scope.spawn(move || {
                for index in client.. {
                    if start.elapsed() > Duration::from_secs(seconds) {
                        break;
                    }
                    match index % 16 {
                        0 => vanish(
                            test,
                            &complete("the cat", json!({"max_tokens": 400, "stream": true})).to_string(),
                            index,
                        ),
                        1 => vanish(test, &request(index).to_string(), index),
                        2 => {
                            let body = ["{", "[]", "{\"prompt\": 3}", "{\"prompt\": \"\\ud800\"}"][index / 16 % 4];
                            let status = test.refused("/v1/completions", body).0;
                            assert!(status == 400 || status == 429, "{status}");
                            bad.fetch_add(1, Relaxed);
                        }
                        _ => {
                            let asked = Instant::now();
                            let (status, _, text) = test.send("/v1/completions", &request(index).to_string());
                            let answer: Value = serde_json::from_str(&text).unwrap();
                            match status {
                                200 => {
                                    assert_eq!(answer["choices"], idle[index % 3], "the text of an idle server");
                                    good.fetch_add(1, Relaxed);
                                }
                                429 => {
                                    assert_eq!(answer["error"]["code"], "rate_limit_exceeded");
                                    times.lock().unwrap().push(asked.elapsed());
                                    refused.fetch_add(1, Relaxed);
                                }
                                _ => panic!("{status}: {text}"),
                            }
                        }
                    }
                }
            });
        }
    });
    let mut times = slowest_refusal.into_inner().unwrap();
    times.sort_unstable();
    let at = |share: usize| times.get(times.len().saturating_sub(1) * share / 100).copied().unwrap_or_default();
    let grown = memory().saturating_sub(before) / 1_000_000;
    eprintln!(
        "{good:?} answered, {refused:?} refused, {bad:?} wrong; a refusal took {:?} (median), {:?} (99 %); {grown} MB more memory",
        at(50),
        at(99)
    );
    assert!(good.into_inner() > 10 && refused.into_inner() > 10 && bad.into_inner() > 10);
    assert!(grown < 300, "{grown} MB");
    assert!(at(50) < Duration::from_millis(50), "{:?}", at(50));
    let freed = Instant::now();
    while !test.get("/metrics").1.contains("\nllm_requests_running 0.0\n") {
        assert!(freed.elapsed() < Duration::from_secs(10), "{}", test.get("/metrics").1);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(test.post("/v1/completions", &request(0))["choices"], idle[0]);
}
