//! The comparison of alignment methods on a tiny pipeline.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use llm_train::Error;
use llm_train::recipes::{CompareAlignmentRecipe, compare_alignment};
use llm_train::run::{Event, RunOptions};
use serde_json::Value;

use super::common::contents;

const TINY: &[(&str, &str)] = &[
    ("seeds", "2"),
    ("kl_coefs", "[0.0, 0.5]"),
    ("best_of", "2"),
    ("questions", "6"),
    ("pipeline.world.corpus_bytes", "60000"),
    ("pipeline.questions.tasks", "24"),
    ("pipeline.questions.crowd", "16"),
    ("pipeline.questions.dialogues", "8"),
    ("pipeline.questions.echoes", "8"),
    ("pipeline.questions.rankings", "16"),
    ("pipeline.questions.prompts", "8"),
    ("pipeline.questions.held_out", "8"),
    ("pipeline.tokenizer.vocab_size", "400"),
    ("pipeline.pretrain.steps", "4"),
    ("pipeline.pretrain.seq_len", "32"),
    ("pipeline.pretrain.model.hidden_size", "16"),
    ("pipeline.pretrain.model.intermediate_size", "32"),
    ("pipeline.pretrain.model.num_hidden_layers", "1"),
    ("pipeline.pretrain.model.num_attention_heads", "2"),
    ("pipeline.pretrain.model.num_key_value_heads", "1"),
    ("pipeline.finetune.epochs", "1"),
    ("pipeline.reward.epochs", "1"),
    ("pipeline.ppo.updates", "4"),
    ("pipeline.ppo.episodes", "4"),
    ("pipeline.ppo.max_new_tokens", "6"),
    ("grpo.updates", "2"),
    ("grpo.max_new_tokens", "6"),
    ("rloo.updates", "2"),
    ("rloo.max_new_tokens", "6"),
    ("dpo.epochs", "1"),
];

/// Runs the comparison; it is asked to stop at the event number `stop_at`.
fn run(out: &Path, resume: bool, stop_at: u64) -> llm_train::Result<String> {
    let set: Vec<(String, String)> = TINY.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let recipe: CompareAlignmentRecipe = llm_train::read_recipe("compare-alignment", &set).unwrap();
    let (events, stop) = (AtomicU64::new(0), std::sync::atomic::AtomicBool::new(false));
    let mut observer = |_: Event| {
        if events.fetch_add(1, SeqCst) == stop_at {
            stop.store(true, SeqCst);
        }
    };
    compare_alignment(
        &recipe,
        out,
        RunOptions { resume, observer: &mut observer, stop: &stop, ..RunOptions::default() },
    )
}

#[test]
fn methods_are_measured_along_their_training_and_a_stopped_comparison_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let report = run(&one, false, u64::MAX).unwrap();
    let points: Value =
        serde_json::from_str(&std::fs::read_to_string(one.join("seed-42/points.json")).unwrap()).unwrap();
    let count = |name: &str| points[name].as_array().unwrap_or_else(|| panic!("{name} is missing")).len();
    assert_eq!(["fine-tuned model", "best-of-n", "PPO, KL coefficient 0", "GRPO", "DPO"].map(count), [1, 2, 3, 2, 1]);
    assert_eq!(points["fine-tuned model"][0]["kl"], 0.);
    for name in ["PPO, KL coefficient 0", "PPO, KL coefficient 0.5", "GRPO", "RLOO", "DPO", "best-of-n"] {
        assert!(report.contains(&format!("| {name} |")), "{name}\n{report}");
    }
    assert!(std::fs::read_to_string(one.join("frontier.svg")).unwrap().contains("GRPO"));
    assert!(report.contains("quantum mechanics") && one.join("seed-43/points.json").is_file());

    // Stopped again and again, it ends in the same bytes.
    let (mut stops, mut stop_at) = (0, 12);
    let resumed = loop {
        match run(&two, stops > 0, stop_at) {
            Ok(report) => break report,
            Err(Error::Interrupted { .. }) => (stops, stop_at) = (stops + 1, 7 + stop_at / 2),
            Err(error) => panic!("{error}"),
        }
        assert!(stops < 200);
    };
    assert!(stops > 3, "{stops}");
    assert_eq!(resumed, report);
    // The recipes of the stages contain the paths of their inputs.
    let all = |dir: &Path| {
        let is_recipe = |path: &Path| path.ends_with("recipe.toml") || path.ends_with(".recipe.toml");
        contents(dir).into_iter().filter(|(path, _)| !is_recipe(path)).collect::<BTreeMap<_, _>>()
    };
    let (expected, found) = (all(&one), all(&two));
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&expected), names(&found));
    let different: Vec<&PathBuf> = expected.keys().filter(|name| expected[*name] != found[*name]).collect();
    assert!(different.is_empty(), "{different:?}");
}
