//! A stage evaluates at most `eval_batches` batches, spread over the validation data.

use std::path::{Path, PathBuf};

use llm_data::{ChatMessage, Conversation, TokenDataset, write_jsonl};
use llm_eval::{TextWindows, document_loss, text_loss};
use llm_model::Model;
use llm_tokenizer::Tokenizer;
use llm_train::recipes::{
    DistillInputs, DistillRecipe, FinetuneInputs, FinetuneRecipe, PretrainInputs, PretrainRecipe, RewardInputs,
    RewardRecipe, distill, finetune, pretrain, reward,
};
use llm_train::run::{Event, RunOptions};
use serde_json::Value;

use super::common::write_pairs;
use super::{FIXTURE, Knobs, Stage, quiet};

/// The values of a metric in a run, in order.
fn logged(run: &Path, key: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter_map(|line| line[key].as_f64()).collect()
}

/// Runs a stage for one epoch with batches of 4.
fn run(stage: Stage, file: &Path, eval_batches: usize, out: &Path) {
    let (model, validation) = (FIXTURE.path("model"), Some(file.to_owned()));
    let (optimizer, data) = (Knobs::default().optimizer(), FIXTURE.path("chats.jsonl"));
    let (epochs, batch_size, eval_every) = (1, 4, 0);
    match stage {
        Stage::Finetune => {
            let recipe =
                FinetuneRecipe { epochs, batch_size, eval_every, eval_batches, optimizer, ..Default::default() };
            let inputs = FinetuneInputs { adapter: None, model, data: vec![data], validation, text: None };
            finetune(&recipe, &inputs, out, quiet()).unwrap();
        }
        Stage::Reward => {
            let recipe = RewardRecipe { epochs, batch_size, eval_every, eval_batches, optimizer, ..Default::default() };
            let data = FIXTURE.path("pairs.jsonl");
            reward(&recipe, &RewardInputs { adapter: None, model, data: vec![data], validation }, out, quiet())
                .unwrap();
        }
        _ => {
            let student = Knobs::default().shape();
            let recipe = DistillRecipe {
                epochs,
                batch_size,
                eval_every,
                eval_batches,
                optimizer,
                student,
                ..Default::default()
            };
            let teacher = model;
            let inputs = DistillInputs { teacher, data: vec![data], validation, ..DistillInputs::default() };
            distill(&recipe, &inputs, out, quiet()).unwrap();
        }
    }
}

#[test]
fn at_most_eval_batches_are_evaluated_spread_over_the_validation_data() {
    for (stage, key) in [(Stage::Finetune, "eval_loss"), (Stage::Reward, "eval_margin"), (Stage::Distill, "eval_kl")] {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let texts: Vec<String> = (0..40).map(|i| format!("number {i} of {}", i * i % 7)).collect();
        let write = |name: &str, texts: &[String]| -> PathBuf {
            let path = path(name);
            if stage == Stage::Reward {
                write_pairs(&path, &texts.iter().map(|text| (text.clone(), "not so".to_owned())).collect::<Vec<_>>());
            } else {
                let chat = |text: &String| {
                    Conversation::from(vec![
                        ChatMessage::user(format!("Ask for {text}.")),
                        ChatMessage::assistant(text),
                    ])
                };
                write_jsonl(&path, &texts.iter().map(chat).collect::<Vec<_>>()).unwrap();
            }
            path
        };
        // One batch of 4 of 40 items: every tenth.
        let some: Vec<String> = [9, 19, 29, 39].map(|i| texts[i].clone()).to_vec();
        let (all, some) = (write("all.jsonl", &texts), write("some.jsonl", &some));
        run(stage, &all, 1, &path("bounded"));
        run(stage, &some, 0, &path("some"));
        run(stage, &all, 0, &path("whole"));
        let [bounded, some, whole] = ["bounded", "some", "whole"].map(|name| logged(&path(name), key));
        assert!(!bounded.is_empty() && bounded == some, "{stage:?}: {bounded:?} and {some:?}");
        assert_ne!(bounded, whole, "{stage:?}");
    }
}

#[test]
fn pre_training_evaluates_eval_batches_of_the_validation_text_and_its_documents_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let (tokenizer, data) = (FIXTURE.path("model.tokenizer"), FIXTURE.path("shards"));
    let model = Knobs::default().shape();
    let recipe = PretrainRecipe { steps: 1, batch_size: 2, seq_len: 8, eval_batches: 1, model, ..Default::default() };
    pretrain(
        &recipe,
        &PretrainInputs { model: None, tokenizer: tokenizer.clone(), data: vec![data.clone()] },
        &out,
        quiet(),
    )
    .unwrap();
    let losses = logged(&out, "eval_loss");
    let (trained, text) = (Model::load(&out).unwrap(), TokenDataset::open(&data, "held_out").unwrap());
    let tokenizer = Tokenizer::load(&tokenizer).unwrap();
    let token_bytes = tokenizer.token_bytes();
    let windows =
        |max_batches| TextWindows { data: &text, token_bytes: &token_bytes, batch_size: 2, seq_len: 8, max_batches };
    let loss = |batches: usize| text_loss(&trained, &windows(batches)).unwrap().loss;
    let last = losses[losses.len() - 1];
    assert!((last - loss(1)).abs() < 1e-6, "{last} logged, {} computed", loss(1));
    assert!((last - loss(0)).abs() > 1e-4, "{last} of one batch, {} of all", loss(0));
    let documents = document_loss(&trained, &windows(1), tokenizer.document_end_id().unwrap()).unwrap();
    let logged = logged(&out, "eval_bpb_document");
    assert!(logged.len() == 1 && (logged[0] - documents.bits_per_byte).abs() < 1e-6, "{logged:?} {documents:?}");
}

#[test]
fn the_progress_says_what_is_evaluated() {
    let expected = [
        (Stage::Pretrain, "evaluating on 64 tokens"),
        (Stage::Finetune, "evaluating on 6 conversations"),
        (Stage::Reward, "evaluating on 4 rankings"),
        (Stage::Distill, "evaluating on 6 conversations"),
    ];
    for (stage, expected) in expected {
        let dir = tempfile::tempdir().unwrap();
        let mut messages = Vec::new();
        let mut observer = |event: Event| {
            if let Event::Progress { message, .. } = event {
                messages.push(message.to_owned());
            }
        };
        let options = RunOptions { observer: &mut observer, ..RunOptions::default() };
        stage.run(&FIXTURE, &Knobs { length: 1, ..Knobs::default() }, &dir.path().join("run"), options).unwrap();
        assert!(messages.iter().any(|message| message == expected), "{stage:?}: {messages:?}");
    }
}
