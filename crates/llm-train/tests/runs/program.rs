//! Messages and exit codes of the program: interruption, resume, invalid settings.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::FIXTURE;
use super::common::everything;

fn program(dir: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm-train"));
    command.current_dir(dir).args(shlex::split(arguments).unwrap()).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Exit code, standard output and standard error.
pub(super) fn output(dir: &Path, arguments: &str) -> (Option<i32>, String, String) {
    let output = program(dir, arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Sends SIGINT (Ctrl-C) when `ready` returns true; returns standard error.
#[cfg(unix)]
fn interrupted(dir: &Path, arguments: &str, ready: impl Fn() -> bool) -> String {
    let child = program(dir, arguments).spawn().unwrap();
    let begun = Instant::now();
    while !ready() {
        assert!(begun.elapsed() < Duration::from_mins(2), "`{arguments}` was never ready");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{message}");
    message
}

#[cfg(unix)]
fn lines(file: &Path) -> usize {
    fs::read_to_string(file).map_or(0, |text| text.lines().count())
}

const SMALL: &str = "--set steps=400 --set batch_size=2 --set seq_len=8 --set eval_batches=1 --set save_every=50 \
                     --set model.hidden_size=16 --set model.intermediate_size=32 --set model.num_hidden_layers=1 \
                     --set model.num_attention_heads=2 --set model.num_key_value_heads=1 --set optimizer.warmup_steps=0";

#[test]
#[cfg(unix)]
fn ctrl_c_saves_and_resume_works_after_moving_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let old = dir.path().join("old");
    fs::create_dir(&old).unwrap();
    for (from, to) in [("model.tokenizer", "tokenizer"), ("shards", "shards")] {
        fs::create_dir(old.join(to)).unwrap();
        for name in llm_files::list_files(&FIXTURE.path(from)).unwrap() {
            fs::copy(FIXTURE.path(from).join(&name), old.join(to).join(&name)).unwrap();
        }
    }
    let begin = format!("pretrain --tokenizer tokenizer --data shards --out runs/a {SMALL}");
    let message = interrupted(&old, &begin, || lines(&old.join("runs/a/metrics.jsonl")) >= 5);
    let last = message.trim_end().lines().last().unwrap();
    assert!(last.contains("interrupted after step") && last.ends_with("llm-train resume runs/a"), "{message}");

    // The same command is refused, and so is another tokenizer with --resume.
    let (code, _, message) = output(&old, &begin);
    assert_eq!(code, Some(2), "{message}");
    assert!(message.contains("--resume"), "{message}");
    let (code, _, message) = output(&old, "pretrain --tokenizer nowhere --data shards --out runs/a --resume");
    assert_eq!(code, Some(2), "{message}");

    // Move the folder, and one input to another place.
    let new = dir.path().join("new");
    fs::rename(&old, &new).unwrap();
    fs::rename(new.join("shards"), dir.path().join("elsewhere")).unwrap();
    let (code, _, message) = output(dir.path(), "resume new/runs/a");
    assert_eq!(code, Some(2), "{message}");
    assert!(message.contains("--input data="), "{message}");
    let (code, text, message) = output(dir.path(), "resume new/runs/a --input data=elsewhere --set steps=410");
    assert_eq!(code, Some(0), "{message}");
    assert!(text.contains("new/runs/a") && text.contains("410 steps") && text.contains("llm-infer generate"), "{text}");
    assert!(message.contains("steps changes from 400 to 410"), "{message}");

    let before = everything(&new.join("runs/a"));
    let (code, text, message) = output(dir.path(), "resume new/runs/a");
    assert_eq!((code, text.as_str()), (Some(0), "new/runs/a is finished (410 steps); nothing to do\n"), "{message}");
    assert!(everything(&new.join("runs/a")) == before);
    let (code, text, message) = output(&new, "resume runs/a --input data=../elsewhere --set steps=411");
    assert_eq!(code, Some(0), "{message}");
    assert!(text.contains("411 steps"), "{text}");
    let (code, _, message) = output(&new, "resume runs/b");
    assert_eq!(code, Some(2), "{message}");
    assert!(message.contains("nothing to resume"), "{message}");
    let (code, _, message) = output(&new, "resume runs/a --input text=x");
    assert!(code == Some(2) && message.contains("no such input"), "{message}");
}

/// Overrides for a pipeline of a few seconds.
const SMALL_PIPELINE: &str = "--set world.corpus_bytes=100000 --set questions.tasks=60 --set questions.crowd=16 \
    --set questions.rankings=32 --set questions.prompts=16 --set questions.held_out=4 --set tokenizer.vocab_size=500 \
    --set pretrain.steps=2000 --set pretrain.batch_size=2 --set pretrain.seq_len=16 --set pretrain.eval_batches=1 \
    --set pretrain.sample_prompts=[] --set pretrain.model.hidden_size=16 --set pretrain.model.intermediate_size=32 \
    --set pretrain.model.num_hidden_layers=1 --set pretrain.model.num_attention_heads=2 \
    --set pretrain.model.num_key_value_heads=1";

#[test]
#[cfg(unix)]
fn an_interrupted_pipeline_may_change_only_stages_that_have_not_started() {
    let dir = tempfile::tempdir().unwrap();
    let pipeline = dir.path().join("pipeline");
    let begin = format!("lifecycle --out pipeline {SMALL_PIPELINE}");
    let message = interrupted(dir.path(), &begin, || lines(&pipeline.join("base/metrics.jsonl")) >= 3);
    assert!(message.trim_end().ends_with("continue with: llm-train resume pipeline"), "{message}");

    let before = everything(&pipeline);
    for (set, named) in [("world.seed=7", "world.seed"), ("pretrain.seed=7", "pretrain.seed")] {
        let (code, _, message) = output(dir.path(), &format!("resume pipeline --set {set}"));
        assert!(code == Some(2) && message.contains(named), "{message}");
    }
    assert!(everything(&pipeline) == before);
    // Stop it again: another test runs the whole pipeline.
    let again = "resume pipeline --set distill.student.hidden_size=32 --set pretrain.steps=2100";
    let recipe = || fs::read_to_string(pipeline.join("base/recipe.toml")).unwrap();
    interrupted(dir.path(), again, || recipe().contains("steps = 2100"));
    let changes = fs::read_to_string(pipeline.join("recipe.toml")).unwrap();
    assert!(changes.contains("distill.student.hidden_size") && changes.contains("pretrain.steps"), "{changes}");
}

#[test]
fn an_invalid_pipeline_is_refused_before_its_first_stage() {
    let dir = tempfile::tempdir().unwrap();
    for (set, named) in [
        ("distill.student.num_attention_heads=3", "distill.student"),
        ("ppo.temperature=0", "ppo.temperature"),
        ("questions.held_out=0", "questions.held_out"),
        ("questions.prompts=0", "questions.prompts"),
        ("annotator.beta=nan", "annotator.beta"),
        ("annotator.beta=-3", "annotator.beta"),
        ("reward.batch_size=0", "reward.batch_size"),
        ("finetune.epochs=0", "finetune.epochs"),
        ("pretrain.model.rope_theta=0", "rope_theta"),
        ("pretrain.model.hidden_size=7", "pretrain.model"),
        ("pretrain.seq_len=5000", "pretrain.seq_len"),
        ("distill.alpha=2", "distill.alpha"),
        ("world.corpus_bytes=0", "world.corpus_bytes"),
        ("pretrain.seed=18446744073709551615", "9223372036854775807"),
        ("pretrain.steps=-5", "whole number"),
        ("pretrain.model.vocab_size=77", "pretrain.model.vocab_size is 77; the tokenizer sets this key"),
        ("pretrain.model.pad_token_id=7", "pretrain.model.pad_token_id is 7; the tokenizer sets this key"),
        ("distill.student.vocab_size=77", "distill.student.vocab_size is 77; the teacher sets this key"),
        ("distill.student.max_position_embeddings=8", "distill.student.max_position_embeddings is 8; the teacher"),
        ("pretrain.model.initializer_range=1e300", "pretrain.model.initializer_range"),
        ("tokenizer.vocab_size=99999999999", "tokenizer.vocab_size"),
        ("tokenizer.min_frequency=0", "tokenizer.min_frequency"),
    ] {
        let (code, _, message) = output(dir.path(), &format!("lifecycle --out pipeline --set {set}"));
        assert_eq!(code, Some(2), "{set}: {message}");
        assert!(message.contains(named) && message.trim_end().lines().count() == 1, "{set}: {message}");
        assert!(!dir.path().join("pipeline").exists(), "{set} left a folder");
    }
    let (code, _, message) = output(dir.path(), "lifecycle --out pipeline --resume");
    assert!(code == Some(2) && message.contains("nothing to resume"), "{message}");
}

#[test]
fn without_a_command_the_program_says_where_to_start() {
    let dir = tempfile::tempdir().unwrap();
    let (code, text, _) = output(dir.path(), "");
    assert_eq!((code, text.lines().filter(|line| line.starts_with("  llm-train ")).count()), (Some(0), 3), "{text}");
}

#[test]
fn a_built_in_recipe_is_printed_and_can_be_used_as_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let (code, names, _) = output(dir.path(), "recipe");
    assert!(code == Some(0) && names.lines().any(|name| name == "lifecycle"), "{names}");
    let (code, text, _) = output(dir.path(), "recipe pretrain");
    assert!(code == Some(0) && text.contains("learning_rate = "), "{text}");
    fs::write(dir.path().join("mine.toml"), text).unwrap();
    let (code, _, message) = output(dir.path(), "bench --recipe mine.toml --set model.no_such_key=1");
    assert!(code == Some(2) && message.contains("unknown key \"model.no_such_key\""), "{message}");
    let (code, _, message) = output(dir.path(), "recipe no-such-recipe");
    assert!(code == Some(2) && message.contains("one of pretrain"), "{message}");
}

#[test]
fn completions_and_manual_pages_are_generated() {
    let dir = tempfile::tempdir().unwrap();
    assert!(output(dir.path(), "completions zsh").1.contains("--validation"));
    assert_eq!(output(dir.path(), "man --out pages").0, Some(0));
    assert!(fs::read_to_string(dir.path().join("pages/llm-train-finetune.1")).unwrap().contains("validation"));
}

#[test]
fn a_run_of_another_command_or_a_folder_of_runs_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for (run, finished) in [("seed-1", true), ("seed-2", false), ("seed-3", false)] {
        let run = dir.path().join("lives").join(run);
        fs::create_dir_all(&run).unwrap();
        let recipe = "[run]\nstage = \"finetune\"\nprogram = \"llm-train\"\n[inputs]\n";
        fs::write(run.join("recipe.toml"), format!("gradient_accumulation_steps = 1\n{recipe}")).unwrap();
        if finished {
            fs::write(run.join("trainer_state.json"), "{}").unwrap();
        }
    }
    let (code, _, message) = output(dir.path(), "resume lives");
    assert_eq!(code, Some(2), "{message}");
    assert!(message.contains("llm-train resume lives/seed-2; llm-train resume lives/seed-3"), "{message}");
    assert!(message.contains("(finished: seed-1)") && !message.contains("resume lives/seed-1"), "{message}");
    for command in ["pretrain --tokenizer t", "reward --model m", "ppo --model m --reward r", "distill --teacher t"] {
        let (code, _, message) = output(dir.path(), &format!("{command} --data d --out lives/seed-2 --resume"));
        assert_eq!(code, Some(2), "{message}");
        assert!(message.contains("this is a run of `finetune`"), "{message}");
    }
}
