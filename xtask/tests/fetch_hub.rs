//! `cargo xtask fetch-data` from a loopback hub: a pattern, the commit in the lock file, an interruption.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "../../crates/llm-hub/tests/server/mod.rs"]
mod server;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use server::{Server, bytes, head, range_head, sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// `fetch-data smoltalk` in `dir` from a hub.
fn command(dir: &Path, hub: &Server) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["fetch-data", "smoltalk"]).current_dir(dir).env("HF_ENDPOINT", &hub.url).env("HF_TOKEN", "hf_secret");
    command.env_remove("HF_HUB_OFFLINE").env_remove("RUST_LOG").stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A hub with two files of 300 kB, sent slowly, and one that the pattern leaves out.
fn hub() -> Server {
    let file = |name: &str, seed: u64| {
        let sum = sha256(&bytes(300_000, seed));
        json!({ "type": "file", "path": format!("data/all/{name}"), "oid": "0".repeat(40), "size": 300_000,
                "lfs": { "oid": sum, "size": 300_000, "pointerSize": 131 } })
    };
    let other = json!({ "type": "file", "path": "data/all/x/0.parquet", "oid": "0".repeat(40), "size": 3 });
    let tree = json!([file("test-0.parquet", 1), file("train-0.parquet", 2), other]).to_string();
    Server::start(move |_, request, stream| {
        let resolve = "/datasets/HuggingFaceTB/smoltalk/resolve/";
        match request.path.as_str() {
            "/api/datasets/HuggingFaceTB/smoltalk/tree/main/data/all?recursive=true" => {
                head(stream, 200, &[("Content-Length", &tree.len().to_string())])?;
                stream.write_all(tree.as_bytes())
            }
            path if path.starts_with(resolve) => {
                let name = path.rsplit('/').next().unwrap().to_owned();
                let to = format!("/cdn/{name}");
                head(stream, 302, &[("Location", &to), ("X-Repo-Commit", COMMIT), ("Content-Length", "0")])
            }
            path => {
                let data = bytes(300_000, if path.contains("test") { 1 } else { 2 });
                for piece in range_head(request, stream, &data, "\"v1\"")?.chunks(3000) {
                    stream.write_all(piece)?;
                    std::thread::sleep(Duration::from_millis(2));
                }
                Ok(())
            }
        }
    })
}

#[test]
fn an_interrupted_fetch_of_a_pattern_goes_on_and_locks_the_commit() {
    let (dir, hub) = (tempfile::tempdir().unwrap(), hub());
    let file = dir.path().join("data/smoltalk/data/all/train-0.parquet");
    let part = file.with_file_name("train-0.parquet.part");
    let mut child = command(dir.path(), &hub).spawn().unwrap();
    let start = Instant::now();
    while fs::metadata(&part).map_or(0, |part| part.len()) < 60_000 {
        assert!(start.elapsed() < Duration::from_secs(30) && !file.exists());
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!dir.path().join("data/fetch.lock").exists());
    let kept = fs::metadata(&part).unwrap().len() as usize;

    let output = command(dir.path(), &hub).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "data/smoltalk: 2 files, 600 kB; licence: Apache-2.0\n");
    let trains = |request: &&server::Request| request.path == "/cdn/train-0.parquet";
    let offsets: Vec<_> = hub.requests().iter().filter(trains).map(server::Request::offset).collect();
    assert_eq!(offsets, [None, Some(kept)]);
    assert_eq!(fs::read(&file).unwrap(), bytes(300_000, 2));
    assert_eq!(
        llm_files::list_files(dir.path().join("data")).unwrap(),
        ["fetch.lock", "smoltalk/data/all/test-0.parquet", "smoltalk/data/all/train-0.parquet"]
    );
    let lock = fs::read_to_string(dir.path().join("data/fetch.lock")).unwrap();
    let url =
        format!("https://huggingface.co/datasets/HuggingFaceTB/smoltalk/resolve/{COMMIT}/data/all/train-0.parquet");
    assert!(lock.contains(&url) && lock.contains(&sha256(&bytes(300_000, 2))), "{lock}");
    let tokens = hub.requests().iter().filter(|request| request.header("authorization").is_some()).count();
    assert_eq!(tokens, hub.requests().len());

    // With the lock file the hub is asked for nothing but missing files, of this commit.
    fs::remove_file(&file).unwrap();
    let seen = hub.requests().len();
    assert!(command(dir.path(), &hub).output().unwrap().status.success());
    let paths: Vec<String> = hub.requests()[seen..].iter().map(|request| request.path.clone()).collect();
    let resolve = format!("/datasets/HuggingFaceTB/smoltalk/resolve/{COMMIT}/data/all/train-0.parquet");
    assert_eq!(paths, [resolve, "/cdn/train-0.parquet".to_owned()]);
}
