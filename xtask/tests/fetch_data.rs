//! `cargo xtask fetch-data` from a local mirror, without a network.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::fs;
use std::path::Path;
use std::process::Command;

/// Runs the command in `dir`, without a network. Returns exit code, standard output and standard error.
fn fetch(dir: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.arg("fetch-data").args(arguments).current_dir(dir).env("HF_HUB_OFFLINE", "1").env_remove("RUST_LOG");
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// A mirror with a set of one file, and one whose files are a pattern.
fn mirror(dir: &Path) -> String {
    let write = |path: &str, text: &str| {
        fs::create_dir_all(dir.join(path).parent().unwrap()).unwrap();
        fs::write(dir.join(path), text).unwrap();
    };
    write("mirror/dolly/databricks-dolly-15k.jsonl", "{\"instruction\": \"Say yes.\", \"response\": \"Yes.\"}\n");
    write("mirror/smoltalk/data/all/train-0.parquet", "rows");
    write("mirror/smoltalk/data/all/test-0.parquet", "more rows");
    write("mirror/smoltalk/README.md", "not in the pattern");
    format!("file://{}/mirror", dir.display())
}

#[test]
fn a_local_mirror_serves_without_a_network() {
    let dir = tempfile::tempdir().unwrap();
    let url = mirror(dir.path());
    let (code, shown, message) = fetch(dir.path(), &["dolly", "smoltalk", "--mirror", &url]);
    assert_eq!(code, Some(0), "{message}");
    assert_eq!(
        shown,
        "data/dolly: 1 file, 48 B; licence: CC BY-SA 3.0\ndata/smoltalk: 2 files, 13 B; licence: Apache-2.0\n"
    );
    let files = llm_files::list_files(dir.path().join("data")).unwrap();
    let smoltalk = ["smoltalk/data/all/test-0.parquet", "smoltalk/data/all/train-0.parquet"];
    assert_eq!(files, ["dolly/databricks-dolly-15k.jsonl", "fetch.lock", smoltalk[0], smoltalk[1]]);

    let lock: toml::Table = fs::read_to_string(dir.path().join("data/fetch.lock")).unwrap().parse().unwrap();
    let file = &lock["file"].as_array().unwrap()[2];
    // printf rows | sha256sum
    let sum = "bc51e9e65d79e1c90ba544ab2eae1044ccdf8c1af7a559ba375cba4276f7d99e";
    assert_eq!(file["sha256"].as_str(), Some(sum));
    assert_eq!(file["bytes"].as_integer(), Some(4));
    let origin = "https://huggingface.co/datasets/HuggingFaceTB/smoltalk/resolve/main/data/all/train-0.parquet";
    assert_eq!(file["url"].as_str(), Some(origin));

    // The second time nothing is fetched: the mirror may be gone. A copy of the folder is a mirror itself.
    let copy = format!("file://{}/data", dir.path().display());
    let (code, _, message) = fetch(dir.path(), &["dolly", "smoltalk", "--mirror", &copy, "--to", "second"]);
    assert_eq!(code, Some(0), "{message}");
    assert_eq!(
        fs::read(dir.path().join("second/fetch.lock")).unwrap(),
        fs::read(dir.path().join("data/fetch.lock")).unwrap()
    );
    let (_, list, _) = fetch(dir.path(), &["--list"]);
    let row = |name: &str| list.lines().find(|line| line.trim_start().starts_with(name)).unwrap().to_owned();
    assert!(row("dolly").contains(" yes "), "{list}");
    assert!(!row("tinystories").contains(" yes "), "{list}");
}

#[test]
fn the_lock_file_and_the_catalogue_are_enforced() {
    let dir = tempfile::tempdir().unwrap();
    let url = mirror(dir.path());
    assert_eq!(fetch(dir.path(), &["dolly", "--mirror", &url]).0, Some(0));
    let file = dir.path().join("data/dolly/databricks-dolly-15k.jsonl");
    let before = fs::read(&file).unwrap();

    // A changed file in the folder is named, and not overwritten.
    fs::write(&file, "edited").unwrap();
    let (code, _, message) = fetch(dir.path(), &["dolly", "--mirror", &url]);
    assert_eq!(code, Some(2));
    assert!(
        message.contains("databricks-dolly-15k.jsonl: has 6 bytes, 48 were expected; delete it to fetch it again"),
        "{message}"
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), "edited");

    // The same bytes come back; other bytes of the same length are refused.
    fs::remove_file(&file).unwrap();
    assert_eq!(fetch(dir.path(), &["dolly", "--mirror", &url]).0, Some(0));
    assert_eq!(fs::read(&file).unwrap(), before);
    fs::remove_file(&file).unwrap();
    let changed: Vec<u8> = before.iter().map(|byte| byte ^ 1).collect();
    fs::write(dir.path().join("mirror/dolly/databricks-dolly-15k.jsonl"), changed).unwrap();
    let (code, _, message) = fetch(dir.path(), &["dolly", "--mirror", &url]);
    assert_eq!(code, Some(1));
    assert!(message.contains("sha256") && message.contains("delete the entries of dolly there"), "{message}");
    assert!(!file.exists());

    // The catalogue knows the content of this file.
    fs::create_dir_all(dir.path().join("mirror/tinyshakespeare")).unwrap();
    fs::write(dir.path().join("mirror/tinyshakespeare/input.txt"), "To be").unwrap();
    let (code, _, message) = fetch(dir.path(), &["tinyshakespeare", "--mirror", &url]);
    assert_eq!(code, Some(1));
    assert!(message.contains("input.txt: has 5 bytes, 1115394 were expected"), "{message}");
}

#[test]
fn mistakes_are_named_with_their_fix() {
    let dir = tempfile::tempdir().unwrap();
    let (code, _, message) = fetch(dir.path(), &["tinystory", "--mirror", &mirror(dir.path())]);
    assert_eq!(code, Some(2));
    assert!(message.contains("tinystory: not in the catalogue; it has tinyshakespeare, tinystories"), "{message}");
    let (code, _, message) = fetch(dir.path(), &["dolly", "--mirror", "file:///no/such/folder"]);
    assert!(code == Some(2) && message.contains("no folder /no/such/folder"), "{message}");
    let (code, _, message) = fetch(dir.path(), &["dolly"]);
    assert!(code == Some(2) && message.contains("--mirror file://DIR"), "{message}");
    assert!(!dir.path().join("data").exists());
}
