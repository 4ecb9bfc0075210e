//! A model of the Hugging Face hub, from a cache: the run keeps its name and the folder.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::FIXTURE;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Copies the model of the tests into the cache in `home` as `org/tiny`.
fn cache(home: &Path) {
    let repo = home.join("hub/models--org--tiny");
    let snapshot = repo.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::write(repo.join("refs/main"), COMMIT).unwrap();
    for name in llm_files::list_files(FIXTURE.path("model")).unwrap() {
        fs::copy(FIXTURE.path("model").join(&name), snapshot.join(&name)).unwrap();
    }
}

/// Runs the program with a cache. Returns the exit code and the standard error.
fn llm_train(home: &Path, arguments: &str) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm-train"));
    command.current_dir(home).args(shlex::split(arguments).unwrap());
    command.env("HF_HOME", home).env_remove("HF_HUB_CACHE").env_remove("RUST_LOG");
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_run_keeps_the_name_and_the_folder_of_a_cached_model() {
    let home = tempfile::tempdir().unwrap();
    cache(home.path());
    fs::copy(FIXTURE.path("chats.jsonl"), home.path().join("chats.jsonl")).unwrap();
    let begin = "finetune --model org/tiny --offline --data chats.jsonl --out run --set epochs=1 --set batch_size=8 --set eval_every=0";
    let (code, message) = llm_train(home.path(), begin);
    assert_eq!(code, Some(0), "{message}");
    let recipe: toml::Table = fs::read_to_string(home.path().join("run/recipe.toml")).unwrap().parse().unwrap();
    let model = &recipe["inputs"]["model"];
    assert_eq!(model["hub"].as_str(), Some(format!("org/tiny@{COMMIT}").as_str()));
    let path = format!("hub/models--org--tiny/snapshots/{COMMIT}");
    assert!(model["path"].as_str().unwrap().ends_with(&path), "{model}");

    // Without the cache a longer run says how to get the model again; with it, also at another place, it goes on.
    let away = tempfile::tempdir().unwrap();
    fs::rename(home.path().join("hub"), away.path().join("hub")).unwrap();
    let (code, message) = llm_train(home.path(), "resume run --set epochs=2");
    assert_eq!(code, Some(2), "{message}");
    assert!(message.contains(&format!("fetch it again with --input model=org/tiny@{COMMIT}")), "{message}");
    fs::create_dir(home.path().join("hub")).unwrap();
    fs::rename(away.path().join("hub/models--org--tiny"), home.path().join("hub/models--org--tiny")).unwrap();
    let (code, message) = llm_train(home.path(), &format!("resume run --set epochs=2 --input model=org/tiny@{COMMIT}"));
    assert_eq!(code, Some(0), "{message}");
}

#[test]
fn offline_names_that_are_not_in_the_cache_are_refused_in_one_line() {
    let home = tempfile::tempdir().unwrap();
    for command in [
        "finetune --model org/none --data chats.jsonl --out run",
        "prepare --tokenizer org/none --train text.txt --out shards",
        "distill --teacher org/none --data chats.jsonl --out run",
        "params org/none",
    ] {
        let (code, message) = llm_train(home.path(), &format!("{command} --offline"));
        assert_eq!((code, message.lines().count()), (Some(2), 1), "{command}: {message}");
        assert!(message.contains("org/none: no such folder here, not complete in the cache"), "{command}: {message}");
    }
}
