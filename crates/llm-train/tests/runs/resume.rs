//! Resuming of interrupted runs, and errors when it is not possible.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use llm_train::recipes::{LifecycleRecipe, PretrainInputs, PretrainRecipe, lifecycle, pretrain};
use llm_train::run::{Event, NEVER, RunOptions, is_finished, recorded_recipe};
use llm_train::{Error, read_recipe};

use super::common::{contents, everything};
use super::{FIXTURE, Knobs, STAGES, Stage, options, quiet};

#[test]
fn an_interrupted_run_writes_a_checkpoint_and_ends_in_the_same_bytes() {
    for stage in STAGES {
        let dir = tempfile::tempdir().unwrap();
        let (uninterrupted, interrupted) = (dir.path().join("whole"), dir.path().join("torn"));
        let knobs = Knobs { length: 4, save_every: 3, ..Knobs::default() };
        let outcome = stage.run(&FIXTURE, &knobs, &uninterrupted, quiet()).unwrap();
        assert!(outcome.steps >= 4);
        for _ in 0..2 {
            let error = stage.interrupted(&FIXTURE, &knobs, &interrupted, 1);
            assert!(matches!(error, Error::Interrupted { .. }), "{stage:?}: {error}");
            assert!(error.to_string().contains("llm-train resume"), "{error}");
            assert!(!is_finished(&interrupted));
        }
        assert!(interrupted.join("checkpoints/step-2").exists(), "{stage:?}");
        let again = stage.run(&FIXTURE, &knobs, &interrupted, options(true)).unwrap();
        assert_eq!(again.steps, outcome.steps);
        let (expected, found) = (contents(&uninterrupted), contents(&interrupted));
        assert!(expected.keys().eq(found.keys()), "{:?} {:?}", expected.keys(), found.keys());
        let different: Vec<_> = expected.keys().filter(|name| expected[*name] != found[*name]).collect();
        assert!(different.is_empty(), "{stage:?}: {different:?}");
    }
}

#[test]
fn inputs_are_identified_by_content() {
    for stage in STAGES {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("run");
        let name = match stage {
            Stage::Pretrain => "shards",
            Stage::Reward | Stage::Dpo | Stage::Kto => "pairs.jsonl",
            Stage::Ppo | Stage::Grpo => "prompts.jsonl",
            _ => "chats.jsonl",
        };
        let knobs = |data: PathBuf| Knobs { data: Some(data), ..Knobs::default() };
        stage.interrupted(&FIXTURE, &knobs(FIXTURE.path(name)), &out, 2);

        let changed = dir.path().join("changed");
        match stage {
            Stage::Pretrain => {
                fs::create_dir(&changed).unwrap();
                for file in llm_files::list_files(&FIXTURE.path(name)).unwrap() {
                    fs::copy(FIXTURE.path(name).join(&file), changed.join(&file)).unwrap();
                }
                let file = changed.join("train-00000.bin");
                let mut bytes = fs::read(&file).unwrap();
                bytes.swap(0, 2);
                fs::write(&file, bytes).unwrap();
            }
            _ => {
                let text = fs::read_to_string(FIXTURE.path(name)).unwrap();
                let reversed: String = text.lines().rev().map(|line| format!("{line}\n")).collect();
                fs::write(&changed, reversed).unwrap();
            }
        }
        let before = everything(&out);
        let error = stage.run(&FIXTURE, &knobs(changed), &out, options(true)).unwrap_err();
        assert!(error.to_string().contains("--data"), "{stage:?}: {error}");
        assert!(everything(&out) == before, "{stage:?}");
        // Another path to the same file.
        let spelled = FIXTURE.0.path().join(".").join(name);
        stage.run(&FIXTURE, &knobs(spelled), &out, options(true)).unwrap();
    }
}

#[test]
fn only_some_keys_may_change_and_changes_are_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let stage = Stage::Pretrain;
    stage.interrupted(&FIXTURE, &Knobs::default(), &out, 2);
    let error = stage.run(&FIXTURE, &Knobs { seed: 2, ..Knobs::default() }, &out, options(true)).unwrap_err();
    assert!(error.to_string().contains("seed is 1 in this run, not 2"), "{error}");
    let error = stage.run(&FIXTURE, &Knobs { length: 1, ..Knobs::default() }, &out, options(true)).unwrap_err();
    assert!(error.to_string().contains("has done 2 steps"), "{error}");

    let longer = Knobs { length: 6, learning_rate: 5e-4, save_every: 2, ..Knobs::default() };
    assert_eq!(stage.run(&FIXTURE, &longer, &out, options(true)).unwrap().steps, 6);
    let recipe: toml::Table = fs::read_to_string(out.join("recipe.toml")).unwrap().parse().unwrap();
    let changes = recipe["run"]["changes"].as_array().unwrap();
    let keys: Vec<&str> = changes.iter().map(|change| change["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["optimizer.learning_rate", "save_every", "steps"]);
    assert!(changes.iter().all(|change| change["step"].as_integer() == Some(2)));

    // A finished run can be extended, but not shortened.
    let outcome = stage.run(&FIXTURE, &Knobs { length: 9, ..longer.clone() }, &out, options(true)).unwrap();
    assert_eq!((outcome.steps, outcome.was_finished), (9, false));
    let metrics = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let steps: Vec<u64> = metrics
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|line| line.get("grad_norm").is_some())
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, (1..=9).collect::<Vec<_>>());
    let error = stage.run(&FIXTURE, &longer, &out, options(true)).unwrap_err();
    assert!(error.to_string().contains("cannot shorten"), "{error}");
    fs::remove_dir_all(out.join("checkpoints")).unwrap();
    let before = everything(&out);
    let error = stage.run(&FIXTURE, &Knobs { length: 12, ..longer }, &out, options(true)).unwrap_err();
    assert!(error.to_string().contains("is gone") && everything(&out) == before, "{error}");
}

#[test]
fn a_damaged_checkpoint_is_replaced_by_the_older_one() {
    for damage in ["flip", "cut", "state", "missing"] {
        let dir = tempfile::tempdir().unwrap();
        let (uninterrupted, interrupted) = (dir.path().join("whole"), dir.path().join("torn"));
        let knobs = Knobs { length: 6, save_every: 2, ..Knobs::default() };
        Stage::Pretrain.run(&FIXTURE, &knobs, &uninterrupted, quiet()).unwrap();
        Stage::Pretrain.interrupted(&FIXTURE, &knobs, &interrupted, 4);
        let newest = interrupted.join("checkpoints/step-4");
        let weights = newest.join("model.safetensors");
        let mut bytes = fs::read(&weights).unwrap();
        match damage {
            "flip" => {
                let end = bytes.len();
                bytes[end - 3] ^= 1;
                fs::write(&weights, bytes).unwrap();
            }
            "cut" => fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap(),
            "state" => fs::write(newest.join("trainer/state.json"), "{").unwrap(),
            _ => fs::remove_file(newest.join("trainer/optimizer.safetensors")).unwrap(),
        }
        // Leftovers of a killed program: a partial checkpoint, temporary files, an incomplete line.
        fs::create_dir_all(interrupted.join("checkpoints/.step-6.partial/trainer")).unwrap();
        fs::write(interrupted.join("checkpoints/.tmpabc"), "").unwrap();
        fs::write(interrupted.join(".tmpabc"), "").unwrap();
        let mut metrics = fs::read(interrupted.join("metrics.jsonl")).unwrap();
        metrics.extend(b"{\"step\": 4, \"lo\xff");
        fs::write(interrupted.join("metrics.jsonl"), metrics).unwrap();

        Stage::Pretrain.run(&FIXTURE, &knobs, &interrupted, options(true)).unwrap();
        assert!(contents(&uninterrupted) == contents(&interrupted), "{damage}");
        let left: Vec<String> = llm_files::list_files(&interrupted).unwrap();
        assert!(!left.iter().any(|name| name.contains(".tmp") || name.contains(".partial")), "{left:?}");
    }
}

#[test]
fn a_second_process_is_refused_while_one_is_running() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let mut refused = 0;
    let mut second = |event: Event| {
        if matches!(event, Event::Progress { .. }) && refused == 0 {
            let error = Stage::Pretrain.run(&FIXTURE, &Knobs::default(), &out, options(true)).unwrap_err();
            assert!(error.is_callers_fault() && error.to_string().contains("another process"), "{error}");
            refused += 1;
        }
    };
    let options = RunOptions { resume: false, device: candle_core::Device::Cpu, observer: &mut second, stop: &NEVER };
    Stage::Pretrain.run(&FIXTURE, &Knobs::default(), &out, options).unwrap();
    assert_eq!(refused, 1);
    let alone = dir.path().join("alone");
    Stage::Pretrain.run(&FIXTURE, &Knobs::default(), &alone, quiet()).unwrap();
    assert!(contents(&out) == contents(&alone), "the first run was changed");
}

#[test]
fn resuming_without_a_run_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("foreign")).unwrap();
    fs::write(dir.path().join("foreign/notes.txt"), "mine").unwrap();
    for stage in STAGES {
        for name in ["nowhere", "foreign"] {
            let error = stage.run(&FIXTURE, &Knobs::default(), &dir.path().join(name), options(true)).unwrap_err();
            assert!(error.to_string().contains("nothing to resume"), "{error}");
            assert!(error.is_callers_fault());
        }
        assert!(!dir.path().join("nowhere").exists());
        assert_eq!(fs::read_dir(dir.path().join("foreign")).unwrap().count(), 1);
    }
    let out = dir.path().join("run");
    Stage::Finetune.interrupted(&FIXTURE, &Knobs::default(), &out, 1);
    let error = Stage::Distill.run(&FIXTURE, &Knobs::default(), &out, options(true)).unwrap_err();
    assert!(error.to_string().contains("this is a run of `finetune`"), "{error}");
}

#[test]
fn an_edited_recipe_is_a_change_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    Stage::Pretrain.interrupted(&FIXTURE, &Knobs::default(), &out, 2);
    let recipe = || fs::read_to_string(out.join("recipe.toml")).unwrap();
    let begun = format!("\n{}", recipe());
    for (key, from, to) in [
        ("seed", "\nseed = 1\n", "\nseed = 2\n"),
        ("seq_len", "\nseq_len = 8\n", "\nseq_len = 4\n"),
        ("model.hidden_size", "\nhidden_size = 16\n", "\nhidden_size = 32\n"),
    ] {
        assert_eq!(begun.matches(from).count(), 1, "{begun}");
        fs::write(out.join("recipe.toml"), begun.replace(from, to)).unwrap();
        let before = everything(&out);
        let edited: PretrainRecipe = recorded_recipe(&out, &[]).unwrap();
        let (tokenizer, data) = (FIXTURE.path("model.tokenizer"), FIXTURE.path("shards"));
        let inputs = PretrainInputs { model: None, tokenizer: tokenizer.clone(), data: vec![data.clone()] };
        let error = pretrain(&edited, &inputs, &out, options(true)).unwrap_err();
        assert!(error.is_callers_fault() && error.to_string().contains(&format!("{key} is ")), "{error}");
        assert!(error.to_string().contains("these keys may change on resume"), "{error}");
        assert!(everything(&out) == before);
    }
    // A key that may change is changed, and the change is recorded.
    fs::write(out.join("recipe.toml"), begun.replace("\nsteps = 4\n", "\nsteps = 5\n")).unwrap();
    assert_eq!(
        Stage::Pretrain.run(&FIXTURE, &Knobs { length: 5, ..Knobs::default() }, &out, options(true)).unwrap().steps,
        5
    );
    assert!(recipe().contains("key = \"steps\""), "{}", recipe());
}

#[test]
fn a_finished_run_with_a_missing_or_damaged_file_is_reported_with_the_command_that_restores_it() {
    for stage in STAGES {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("run");
        let knobs = Knobs { length: 1, ..Knobs::default() };
        stage.run(&FIXTURE, &knobs, &out, quiet()).unwrap();
        let file = out.join("model.safetensors");
        let weights = fs::read(&file).unwrap();
        for (damaged, what) in [(None, "is missing"), (Some(&weights[..100]), "has changed")] {
            match damaged {
                None => fs::remove_file(&file).unwrap(),
                Some(bytes) => fs::write(&file, bytes).unwrap(),
            }
            let message = stage.run(&FIXTURE, &knobs, &out, options(true)).unwrap_err().to_string();
            assert!(message.contains(&format!("is finished, but model.safetensors {what}")), "{stage:?}: {message}");
            let command = message.split("restore it with: cp ").nth(1).unwrap_or_else(|| panic!("{message}"));
            let (from, to) = command.split_once(' ').unwrap();
            fs::copy(from, to).unwrap();
            assert!(fs::read(&file).unwrap() == weights);
            assert!(stage.run(&FIXTURE, &knobs, &out, options(true)).unwrap().was_finished);
        }
        // Without an intact checkpoint there is nothing to restore from.
        fs::remove_file(&file).unwrap();
        for name in llm_files::list_files(&out.join("checkpoints")).unwrap() {
            if name.ends_with("safetensors") {
                fs::write(out.join("checkpoints").join(name), "damaged").unwrap();
            }
        }
        let message = stage.run(&FIXTURE, &knobs, &out, options(true)).unwrap_err().to_string();
        assert!(message.ends_with("no intact checkpoint has this file; start a new run"), "{message}");
    }
}

#[test]
fn a_pipeline_stops_after_the_part_of_its_data_that_is_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let life = dir.path().join("life");
    let sizes = ["tasks", "crowd", "rankings", "prompts", "held_out"].map(|key| (format!("questions.{key}"), "8"));
    let mut set = vec![("world.corpus_bytes".to_owned(), "100000"), ("tokenizer.vocab_size".to_owned(), "500")];
    set.extend(sizes);
    let set: Vec<_> = set.into_iter().map(|(key, value)| (key, value.to_owned())).collect();
    let recipe: LifecycleRecipe = read_recipe("lifecycle", &set).unwrap();

    // Asked to stop while the dataset, then while the shards are written.
    for (begun, part, written, not) in
        [("data", "data", "data/prompts.jsonl", "tokenizer"), ("prepare", "shards", "shards/manifest.json", "base")]
    {
        let stop = AtomicBool::new(false);
        let mut watch = |event: Event| {
            if matches!(event, Event::Begin { stage, .. } if stage == begun) {
                stop.store(true, SeqCst);
            }
        };
        let options = RunOptions { observer: &mut watch, stop: &stop, ..options(life.exists()) };
        let message = lifecycle(&recipe, &life, options).unwrap_err().to_string();
        let expected = format!("life: interrupted after this part ({part}); continue with: llm-train resume ");
        assert!(message.contains(&expected), "{message}");
        assert!(life.join(written).exists() && !life.join(not).exists());
    }
}
