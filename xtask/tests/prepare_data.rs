//! `cargo xtask prepare-data`: finished steps are skipped, and an interrupted one is done anew.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program in the place of llm-train: logs its words, and writes the folder of `--out`, but fails in it while `broken` exists.
const PROGRAM: &str = r#"#!/bin/sh
echo "$@" >> log
while [ "$1" != --out ]; do shift; done
[ ! -e "$2" ] || exit 9
mkdir -p "$2"
[ ! -e broken ] || exit 1
echo done > "$2/result"
"#;

const RECIPE: &str = r#"
set = "dolly"

[[steps]]
out = "clean"
command = "clean --input {data}/databricks-dolly-15k.jsonl --separator '<|end of text|>' --out {out}/clean"

[[steps]]
out = "shards"
command = "prepare --train {out}/clean --out {out}/shards"
"#;

/// A folder with the program, a mirror and a recipe.
struct Fixture(tempfile::TempDir);

impl Fixture {
    fn new() -> Self {
        let fixture = Self(tempfile::tempdir().unwrap());
        fs::write(fixture.path("llm-train"), PROGRAM).unwrap();
        fs::set_permissions(fixture.path("llm-train"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir_all(fixture.path("mirror/dolly")).unwrap();
        fs::write(fixture.path("mirror/dolly/databricks-dolly-15k.jsonl"), "{}\n").unwrap();
        fs::write(fixture.path("mine.toml"), RECIPE).unwrap();
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `prepare-data mine.toml`. Returns the exit code, the standard error and the words of llm-train.
    fn prepare(&self) -> (Option<i32>, String, Vec<String>) {
        let _ = fs::remove_file(self.path("log"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.args(["prepare-data", "mine.toml", "--mirror", &format!("file://{}", self.path("mirror").display())]);
        command.current_dir(self.0.path()).env("LLM_TRAIN", "./llm-train").env_remove("RUST_LOG");
        let output = command.output().unwrap();
        let log = fs::read_to_string(self.path("log")).unwrap_or_default().lines().map(str::to_owned).collect();
        (output.status.code(), String::from_utf8(output.stderr).unwrap(), log)
    }
}

#[test]
fn a_recipe_fetches_and_runs_its_steps_once() {
    let fixture = Fixture::new();
    let clean = "clean --input data/dolly/databricks-dolly-15k.jsonl --separator <|end of text|> --out data/prepared/mine/clean";
    let shards = "prepare --train data/prepared/mine/clean --out data/prepared/mine/shards";
    let (code, message, log) = fixture.prepare();
    assert_eq!((code, log), (Some(0), vec![clean.to_owned(), shards.to_owned()]), "{message}");
    assert!(fixture.path("data/prepared/mine/shards/result").exists() && fixture.path("data/fetch.lock").exists());

    // Nothing is left to do, and nothing is fetched.
    fs::remove_dir_all(fixture.path("mirror")).unwrap();
    let (code, message, log) = fixture.prepare();
    assert_eq!((code, log.len()), (Some(0), 0), "{message}");
    fs::remove_dir_all(fixture.path("data/prepared/mine/shards")).unwrap();
    fs::create_dir(fixture.path("mirror")).unwrap();
    assert_eq!(fixture.prepare().2, [shards]);
}

#[test]
fn a_step_that_did_not_end_is_done_anew() {
    let fixture = Fixture::new();
    fs::write(fixture.path("broken"), "").unwrap();
    let (code, message, log) = fixture.prepare();
    assert_eq!((code, log.len()), (Some(1), 1));
    assert!(message.contains("`llm-train clean ") && message.contains("goes on with this step"), "{message}");
    assert!(fixture.path("data/prepared/mine/clean").exists());
    fs::remove_file(fixture.path("broken")).unwrap();
    let (code, message, log) = fixture.prepare();
    assert_eq!((code, log.len()), (Some(0), 2), "{message}");
}

#[test]
fn the_result_of_another_recipe_is_not_overwritten() {
    let fixture = Fixture::new();
    assert_eq!(fixture.prepare().0, Some(0));
    let changed = RECIPE.replace("--separator", "--strict --separator");
    fs::write(fixture.path("mine.toml"), changed).unwrap();
    let (code, message, log) = fixture.prepare();
    assert_eq!((code, log.len()), (Some(2), 0));
    assert!(message.contains("data/prepared/mine/clean: is of another recipe"), "{message}");
    // The shards of the old text would stay: they are named next.
    fs::remove_dir_all(fixture.path("data/prepared/mine/clean")).unwrap();
    let (code, message, _) = fixture.prepare();
    assert!(code == Some(2) && message.contains("data/prepared/mine/shards: is of another recipe"), "{message}");
    fs::remove_dir_all(fixture.path("data/prepared/mine/shards")).unwrap();
    assert_eq!(fixture.prepare().2.len(), 2);
}

/// With the real program, which `cargo test --workspace` has built, on stories in the format of the set.
#[test]
fn the_built_in_recipe_of_stories_makes_shards() {
    let program = Path::new(env!("CARGO_BIN_EXE_xtask")).with_file_name("llm-train");
    if !program.exists() {
        eprintln!("skipped: build llm-train first, in the same profile");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let set = dir.path().join("mirror/tinystories");
    fs::create_dir_all(&set).unwrap();
    // Stories of random words, so that no two are alike.
    let names: Vec<String> =
        "bcdfghjklm".chars().flat_map(|a| "aeiou".chars().map(move |b| format!("{a}{b}t{b}"))).collect();
    let story = |i: usize| {
        let word = |k: usize| {
            let mut hasher = DefaultHasher::new();
            (i, k).hash(&mut hasher);
            names[hasher.finish() as usize % names.len()].as_str()
        };
        (0..40).map(word).collect::<Vec<_>>().join(" ")
    };
    let stories =
        |from: usize, count: usize| (from..from + count).map(|i| story(i) + "\n<|endoftext|>\n").collect::<String>();
    // The third story is there twice.
    fs::write(set.join("TinyStoriesV2-GPT4-train.txt"), stories(0, 200) + &stories(2, 1)).unwrap();
    fs::write(set.join("TinyStoriesV2-GPT4-valid.txt"), stories(300, 20)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["prepare-data", "tinystories", "--mirror", "file://mirror"]);
    let output = command.current_dir(dir.path()).env("LLM_TRAIN", program).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let out = dir.path().join("data/prepared/tinystories");
    let rows = fs::read_to_string(out.join("train/text/part-00000.jsonl")).unwrap();
    assert_eq!(rows.lines().count(), 200);
    assert!(!rows.contains("endoftext"), "{rows}");
    assert!(out.join("shards/manifest.json").exists());
}
