//! A tiny pipeline run by the program: killed in every stage and resumed, it ends in the same bytes.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{contents, everything};

/// Overrides for a tiny pipeline: models of two layers, 10 to 30 steps per stage.
const SMALL: &[&str] = &[
    "world.corpus_bytes=200000",
    "questions.tasks=160",
    "questions.crowd=32",
    "questions.dialogues=16",
    "questions.echoes=16",
    "questions.lessons=32",
    "questions.probes=12",
    "questions.rankings=96",
    "questions.prompts=64",
    "questions.held_out=12",
    "tokenizer.vocab_size=600",
    "pretrain.steps=24",
    "pretrain.seq_len=64",
    "pretrain.eval_every=8",
    "pretrain.eval_batches=2",
    "pretrain.save_every=5",
    "pretrain.model.hidden_size=32",
    "pretrain.model.intermediate_size=64",
    "pretrain.model.num_hidden_layers=2",
    "pretrain.model.num_attention_heads=4",
    "pretrain.model.num_key_value_heads=2",
    "finetune.epochs=2",
    "finetune.eval_every=10",
    "finetune.save_every=5",
    "reward.epochs=3",
    "reward.batch_size=16",
    "reward.eval_every=6",
    "reward.save_every=5",
    "ppo.updates=14",
    "ppo.episodes=16",
    "ppo.max_new_tokens=16",
    "ppo.save_every=3",
    "ppo.kl_target_per_sequence=0.5",
    "distill.text_steps=12",
    "distill.epochs=2",
    "distill.eval_every=10",
    "distill.save_every=5",
    "distill.student.hidden_size=16",
    "distill.student.intermediate_size=32",
    "distill.student.num_hidden_layers=2",
    "distill.student.num_attention_heads=2",
    "distill.student.num_key_value_heads=1",
];

fn program(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm-train"));
    // Relative paths, because recipes record them.
    command.current_dir(dir).env("RUST_LOG", "warn").stdin(Stdio::null());
    command
}

fn lifecycle(dir: &Path, resume: bool) -> Command {
    lifecycle_in(dir, "run", resume)
}

fn lifecycle_in(dir: &Path, out: &str, resume: bool) -> Command {
    let mut command = program(dir);
    command.args(["lifecycle", "--out", out]).args(resume.then_some("--resume"));
    for setting in SMALL {
        command.args(["--set", setting]);
    }
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Waits for `reached` or the end of the program, then kills it (SIGKILL on Unix). Returns whether it was still running.
fn kill_when(mut child: Child, reached: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while !reached() && child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_mins(5), "the stage was never reached");
        std::thread::sleep(Duration::from_millis(1));
    }
    let running = child.try_wait().unwrap().is_none();
    child.kill().ok();
    child.wait().unwrap();
    running
}

#[test]
fn a_pipeline_killed_in_every_stage_ends_in_the_same_bytes() {
    let (uninterrupted, interrupted) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let output = lifecycle(uninterrupted.path(), false).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let run = interrupted.path().join("run");
    let mut resume = false;
    for early in ["data", "tokenizer", "shards", "data/lessons-train.jsonl", "student/trainer_state.json"] {
        if early == "data/lessons-train.jsonl" {
            // Each training stage after its first checkpoint, between two checkpoints.
            for stage in ["base", "instruct", "reward", "aligned"] {
                kill_in_stage(&run, interrupted.path(), stage);
            }
        }
        let child = lifecycle(interrupted.path(), resume).spawn().unwrap();
        let path = run.join(early);
        assert!(kill_when(child, || path.exists()), "{early}: the program ended before it was killed");
        resume = true;
        if early == "data/lessons-train.jsonl" {
            kill_in_stage(&run, interrupted.path(), "student");
        }
    }
    let output = lifecycle(interrupted.path(), true).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let (expected, found) = (contents(&uninterrupted.path().join("run")), contents(&run));
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&expected), names(&found));
    let different: Vec<&PathBuf> = expected.keys().filter(|name| expected[*name] != found[*name]).collect();
    assert!(different.is_empty(), "{different:?}");
    assert!(expected.len() > 60, "{:?}", names(&expected));
    assert!(run.join("report.md").exists());

    // A finished pipeline is not repeated or overwritten; it prints its table again.
    let before = everything(&run);
    let again = lifecycle(interrupted.path(), true).stdout(Stdio::piped()).output().unwrap();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert!(String::from_utf8_lossy(&again.stdout).contains(&std::fs::read_to_string(run.join("summary.md")).unwrap()));
    assert!(everything(&run) == before, "a finished run was changed");
    let again = lifecycle(interrupted.path(), false).output().unwrap();
    assert_eq!(again.status.code(), Some(2));
    let message = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(message.contains("--resume") && message.trim_end().lines().count() == 1, "{message}");
    table_over_seeds(interrupted.path(), &run);

    // Without one of its models it is not finished.
    std::fs::remove_file(run.join("instruct/model.safetensors")).unwrap();
    let again = lifecycle(interrupted.path(), true).output().unwrap();
    let message = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(again.status.code() == Some(2) && message.contains("model.safetensors is missing"), "{message}");
    assert!(message.contains("restore it with: cp run/instruct/checkpoints/step-"), "{message}");
}

/// Two finished runs, the second a copy with other seeds and a result changed by hand: the table has their mean and range.
fn table_over_seeds(dir: &Path, run: &Path) {
    for (seed, loss) in [(42, 2.), (43, 3.)] {
        let copy = dir.join(format!("lives/seed-{seed}"));
        for name in llm_files::list_files(run).unwrap() {
            std::fs::create_dir_all(copy.join(&name).parent().unwrap()).unwrap();
            std::fs::copy(run.join(&name), copy.join(&name)).unwrap();
        }
        for name in ["recipe.toml", ".recipe.toml"] {
            let text = std::fs::read_to_string(copy.join(name)).unwrap();
            std::fs::write(copy.join(name), text.replace("seed = 42", &format!("seed = {seed}"))).unwrap();
        }
        let file = copy.join("evaluation.json");
        let mut evaluation: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let metrics = evaluation["metrics"].as_array_mut().unwrap();
        let metric = metrics.iter_mut().find(|m| m["name"] == "validation loss, nats per token").unwrap();
        metric["value"] = loss.into();
        std::fs::write(file, evaluation.to_string()).unwrap();
    }
    let seeds = |resume: bool| {
        let mut command = lifecycle_in(dir, "lives", resume);
        command.args(["--seeds", "2"]).stdout(Stdio::piped());
        command
    };
    let refused = seeds(false).output().unwrap();
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        refused.status.code() == Some(2) && message.contains("seed-42: already exists; continue its run with --resume"),
        "{message}"
    );
    let before = everything(&dir.join("lives/seed-43"));
    let output = seeds(true).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (table, report) = (String::from_utf8(output.stdout).unwrap(), dir.join("lives/report.md"));
    assert!(table.contains("| validation loss, nats per token | 2.500 | 2.000 to 3.000 |"), "{table}");
    assert!(std::fs::read_to_string(report).unwrap().contains("| mean of 2 seeds |"));
    assert!(everything(&dir.join("lives/seed-43")) == before);
}

/// Kills the program twice, some steps after the first checkpoint of `stage`.
fn kill_in_stage(run: &Path, dir: &Path, stage: &str) {
    let metrics = run.join(stage).join("metrics.jsonl");
    let lines = || std::fs::read_to_string(&metrics).map_or(0, |text| text.lines().count());
    for wanted in [7, 10] {
        let child = lifecycle(dir, true).spawn().unwrap();
        assert!(kill_when(child, || lines() >= wanted), "{stage}: the program ended");
        assert!(!run.join(stage).join("trainer_state.json").exists(), "{stage} was finished before it was killed");
    }
}

#[test]
fn invalid_input_gives_a_one_line_error_and_exit_code_2() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("broken.jsonl"), "{\"messages\": [}\n").unwrap();
    std::fs::write(dir.path().join("bad.toml"), "steps = \"many\"\n").unwrap();
    std::fs::create_dir(dir.path().join("taken")).unwrap();
    std::fs::write(dir.path().join("taken/notes.txt"), "mine").unwrap();
    for (arguments, named) in [
        (&["lifecycle", "--out", "x", "--set", "pretrain.stepps=3"][..], &["pretrain.stepps", "steps"][..]),
        (&["lifecycle", "--out", "x", "--set", "pretrain.steps=many"], &["pretrain.steps"]),
        (&["lifecycle", "--out", "x", "--recipe", "nowhere.toml"], &["nowhere.toml"]),
        (&["lifecycle", "--out", "taken"], &["taken", "--out"]),
        (&["tokenizer", "train", "--input", "no.txt", "--out", "x"], &["no.txt"]),
        (&["prepare", "--tokenizer", "no", "--train", "broken.jsonl", "--out", "x"], &["no"]),
        (&["pretrain", "--tokenizer", "no", "--data", "no", "--out", "x"], &["no: no such folder", "tokenizer.json"]),
        (
            &["pretrain", "--tokenizer", "no", "--data", "no", "--out", "x", "--recipe", "bad.toml"],
            &["bad.toml", "steps"],
        ),
        (&["finetune", "--model", "taken", "--data", "broken.jsonl", "--out", "x"], &["taken"]),
        (&["reward", "--model", "no", "--data", "broken.jsonl", "--out", "x"], &["no"]),
        (&["ppo", "--model", "no", "--reward", "no", "--data", "broken.jsonl", "--out", "x"], &["no"]),
        (&["distill", "--teacher", "no", "--data", "broken.jsonl", "--out", "x"], &["no"]),
    ] {
        let output = program(dir.path()).args(arguments).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
        assert_eq!(message.trim_end().lines().count(), 1, "{arguments:?}: {message}");
        assert!(named.iter().all(|part| message.contains(part)), "{arguments:?}: {message}");
        assert!(output.stdout.is_empty());
        assert!(!dir.path().join("x").exists(), "{arguments:?} left files");
    }
    assert_eq!(std::fs::read_to_string(dir.path().join("taken/notes.txt")).unwrap(), "mine");
}
