//! What the program says and how it ends when it is stopped, resumed, or asked for nonsense.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::WORLD;
use super::common::everything;

fn program(dir: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm-train"));
    command.current_dir(dir).args(shlex::split(arguments).unwrap()).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Exit code, standard output and standard error.
fn said(dir: &Path, arguments: &str) -> (Option<i32>, String, String) {
    let output = program(dir, arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Interrupts the program as Ctrl-C does when `ready` says so, and gives its standard error.
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
fn ctrl_c_saves_and_resume_needs_no_other_option_wherever_the_folder_is() {
    let dir = tempfile::tempdir().unwrap();
    let old = dir.path().join("old");
    fs::create_dir(&old).unwrap();
    for (from, to) in [("model.tokenizer", "tokenizer"), ("shards", "shards")] {
        fs::create_dir(old.join(to)).unwrap();
        for name in llm_files::list_files(&WORLD.path(from)).unwrap() {
            fs::copy(WORLD.path(from).join(&name), old.join(to).join(&name)).unwrap();
        }
    }
    let begin = format!("pretrain --tokenizer tokenizer --data shards --out runs/a {SMALL}");
    let message = interrupted(&old, &begin, || lines(&old.join("runs/a/metrics.jsonl")) >= 5);
    let last = message.trim_end().lines().last().unwrap();
    assert!(last.contains("interrupted after step") && last.ends_with("llm-train resume runs/a"), "{message}");

    // The same command is refused; --resume with nothing else said goes on as the run was begun.
    let (code, _, message) = said(&old, &begin);
    assert_eq!(code, Some(2), "{message}");
    assert!(message.contains("--resume"), "{message}");
    let (code, _, message) = said(&old, "pretrain --tokenizer nowhere --data shards --out runs/a --resume");
    assert_eq!(code, Some(2), "{message}");

    // Everything moves; one input away from the others.
    let new = dir.path().join("new");
    fs::rename(&old, &new).unwrap();
    fs::rename(new.join("shards"), dir.path().join("elsewhere")).unwrap();
    let (code, _, message) = said(dir.path(), "resume new/runs/a");
    assert_eq!(code, Some(2), "{message}");
    assert!(message.contains("--input data="), "{message}");
    let (code, text, message) = said(dir.path(), "resume new/runs/a --input data=elsewhere --set steps=410");
    assert_eq!(code, Some(0), "{message}");
    assert!(text.contains("new/runs/a") && text.contains("410 steps") && text.contains("llm-infer generate"), "{text}");
    assert!(message.contains("steps changes from 400 to 410"), "{message}");

    let before = everything(&new.join("runs/a"));
    let (code, text, message) = said(dir.path(), "resume new/runs/a");
    assert_eq!((code, text.as_str()), (Some(0), "new/runs/a is finished (410 steps); nothing to do\n"), "{message}");
    assert!(everything(&new.join("runs/a")) == before);
    let (code, text, message) = said(&new, "resume runs/a --input data=../elsewhere --set steps=411");
    assert_eq!(code, Some(0), "{message}");
    assert!(text.contains("411 steps"), "{text}");
    let (code, _, message) = said(&new, "resume runs/b");
    assert_eq!(code, Some(2), "{message}");
    assert!(message.contains("nothing to resume"), "{message}");
    let (code, _, message) = said(&new, "resume runs/a --input text=x");
    assert!(code == Some(2) && message.contains("no such input"), "{message}");
}

/// A life of a few seconds; its student's stage is changed before it begins.
const SMALL_LIFE: &str = "--set world.corpus_bytes=100000 --set questions.tasks=60 --set questions.crowd=16 \
    --set questions.rankings=32 --set questions.prompts=16 --set questions.held_out=4 --set tokenizer.vocab_size=500 \
    --set pretrain.steps=2000 --set pretrain.batch_size=2 --set pretrain.seq_len=16 --set pretrain.eval_batches=1 \
    --set pretrain.sample_prompts=[] --set pretrain.model.hidden_size=16 --set pretrain.model.intermediate_size=32 \
    --set pretrain.model.num_hidden_layers=1 --set pretrain.model.num_attention_heads=2 \
    --set pretrain.model.num_key_value_heads=1";

#[test]
#[cfg(unix)]
fn a_life_is_interrupted_in_good_order_and_only_what_has_not_begun_may_change() {
    let dir = tempfile::tempdir().unwrap();
    let life = dir.path().join("life");
    let begin = format!("lifecycle --out life {SMALL_LIFE}");
    let message = interrupted(dir.path(), &begin, || lines(&life.join("base/metrics.jsonl")) >= 3);
    assert!(message.trim_end().ends_with("go on by: llm-train resume life"), "{message}");

    let before = everything(&life);
    for (set, named) in [("world.seed=7", "world.seed"), ("pretrain.seed=7", "pretrain.seed")] {
        let (code, _, message) = said(dir.path(), &format!("resume life --set {set}"));
        assert!(code == Some(2) && message.contains(named), "{message}");
    }
    assert!(everything(&life) == before);
    // Stopped again at once, as the rest of the life is another test's.
    let again = "resume life --set distill.student.hidden_size=32 --set pretrain.steps=2100";
    let recipe = || fs::read_to_string(life.join("base/recipe.toml")).unwrap();
    interrupted(dir.path(), again, || recipe().contains("steps = 2100"));
    let changes = fs::read_to_string(life.join("recipe.toml")).unwrap();
    assert!(changes.contains("distill.student.hidden_size") && changes.contains("pretrain.steps"), "{changes}");
}

#[test]
fn a_bad_life_is_refused_before_its_first_stage() {
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
    ] {
        let (code, _, message) = said(dir.path(), &format!("lifecycle --out life --set {set}"));
        assert_eq!(code, Some(2), "{set}: {message}");
        assert!(message.contains(named) && message.trim_end().lines().count() == 1, "{set}: {message}");
        assert!(!dir.path().join("life").exists(), "{set} left a folder");
    }
    let (code, _, message) = said(dir.path(), "lifecycle --out life --resume");
    assert!(code == Some(2) && message.contains("nothing to resume"), "{message}");
}
