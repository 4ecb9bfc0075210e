//! Packed batches in the stages that train on conversations, and runs that are killed within an epoch.

use std::fs;

use llm_data::{ChatMessage, Conversation, write_jsonl};
use llm_model::LoraConfig;
use llm_train::batches::{BatchSize, LengthBatches};
use serde_json::Value;

use super::common::contents;
use super::{FIXTURE, Knobs, Stage, options, quiet};

/// Runs a stage whole, and killed one step after each checkpoint and resumed; both must have the same bytes.
fn killed_and_resumed(stage: Stage, knobs: &Knobs, kill_after: &[u64]) -> Vec<u64> {
    let dir = tempfile::tempdir().unwrap();
    let (whole, torn) = (dir.path().join("whole"), dir.path().join("torn"));
    stage.run(&FIXTURE, knobs, &whole, quiet()).unwrap();
    let mut done = 0;
    for &step in kill_after {
        stage.interrupted(&FIXTURE, knobs, &torn, step - done);
        // A stopped run writes a checkpoint, a killed one does not.
        done = step - step % knobs.save_every;
        if done != step {
            fs::remove_dir_all(torn.join(format!("checkpoints/step-{step}"))).unwrap();
        }
    }
    stage.run(&FIXTURE, knobs, &torn, options(true)).unwrap();
    let (expected, found) = (contents(&whole), contents(&torn));
    assert!(expected.keys().eq(found.keys()), "{:?} {:?}", expected.keys(), found.keys());
    let different: Vec<_> = expected.keys().filter(|name| expected[*name] != found[*name]).collect();
    assert!(different.is_empty(), "{stage:?}: {different:?}");
    let metrics = fs::read_to_string(whole.join("metrics.jsonl")).unwrap();
    let lines = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["grad_norm"].is_number()).map(|line| line["step"].as_u64().unwrap()).collect()
}

#[test]
fn a_killed_run_with_packed_batches_ends_in_the_same_bytes() {
    let knobs = Knobs { max_tokens: 90, save_every: 2, length: 3, ..Knobs::default() };
    for stage in [Stage::Finetune, Stage::Reward, Stage::Distill] {
        let steps = killed_and_resumed(stage, &knobs, &[3, 5]);
        assert!(steps.len() >= 6, "{stage:?}: {steps:?}");
    }
}

#[test]
fn a_killed_run_with_packing_plain_text_and_an_adapter_ends_in_the_same_bytes() {
    let lora = Some(LoraConfig { r: 2, ..LoraConfig::default() });
    let knobs = Knobs { max_tokens: 90, text: true, lora, save_every: 2, length: 3, ..Knobs::default() };
    killed_and_resumed(Stage::Finetune, &knobs, &[3, 6]);
}

/// Twelve rows in batches of four, a checkpoint after the last batch of the first epoch, and a kill after it.
#[test]
fn a_run_killed_at_the_end_of_an_epoch_goes_on_with_the_first_batch_of_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("twelve.jsonl");
    let words = ["one", "two", "three", "four", "five", "six"];
    let chat = |i: usize| {
        vec![ChatMessage::user(format!("Say {} {}.", words[i % 6], i)), ChatMessage::assistant(words[i / 2])]
    };
    write_jsonl(&data, &(0..12).map(|i| Conversation::from(chat(i))).collect::<Vec<_>>()).unwrap();
    for max_tokens in [0, 90] {
        let knobs = Knobs { data: Some(data.clone()), length: 3, save_every: 3, max_tokens, ..Knobs::default() };
        for kill_after in [3, 4] {
            let steps = killed_and_resumed(Stage::Finetune, &knobs, &[kill_after]);
            assert!(max_tokens > 0 || steps == (1..=9).collect::<Vec<_>>(), "{steps:?}");
        }
    }
    let mut batches = LengthBatches::new(vec![9; 12], BatchSize::Items(4), 1).unwrap();
    assert_eq!(batches.count(1), 3);
    let mut second: Vec<usize> = (3..6).flat_map(|n| batches.batch(n)).collect();
    second.sort_unstable();
    assert_eq!(second, (0..12).collect::<Vec<_>>(), "steps 4 to 6 are the second epoch");
}

#[test]
fn a_budget_below_the_longest_conversation_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let message = |max_tokens| {
        let knobs = Knobs { max_tokens, ..Knobs::default() };
        Stage::Finetune.run(&FIXTURE, &knobs, &out, quiet()).unwrap_err().to_string()
    };
    assert_eq!(message(39), "max_tokens is 39; it must be 0, or at least max_length, 40");
    assert!(!out.exists());
}
