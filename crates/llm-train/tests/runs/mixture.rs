//! Pre-training on a mixture of token shards.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use llm_data::Packing;
use llm_train::Result;
use llm_train::recipes::{PrepareInputs, PretrainInputs, PretrainRecipe, prepare, pretrain};
use llm_train::run::{Event, Outcome, RunOptions};

use super::common::contents;
use super::{FIXTURE, Knobs, options, quiet};

/// The shards of a short text in `dir`.
fn small_shards(dir: &Path) -> PathBuf {
    let (text, out) = (dir.join("small.txt"), dir.join("small"));
    fs::write(&text, "eight and one.\nseven and two.\nsix and three.\nfive and four.\n".repeat(3)).unwrap();
    let (tokenizer, train) = (FIXTURE.path("model.tokenizer"), vec![text]);
    let inputs = PrepareInputs { tokenizer, train, validation_share: 0.2, ..PrepareInputs::default() };
    prepare(&inputs, &out, quiet()).unwrap();
    out
}

fn run(
    small: &Path,
    weights: &[f64],
    change: impl Fn(&mut PretrainRecipe),
    out: &Path,
    options: RunOptions,
) -> Result<Outcome> {
    let mut recipe = PretrainRecipe {
        steps: 30,
        batch_size: 4,
        seq_len: 8,
        eval_batches: 1,
        save_every: 7,
        optimizer: Knobs::default().optimizer(),
        model: Knobs::default().shape(),
        ..PretrainRecipe::default()
    };
    recipe.data.weights = weights.to_vec();
    change(&mut recipe);
    let data = vec![FIXTURE.path("shards"), small.to_owned()];
    pretrain(&recipe, &PretrainInputs { model: None, tokenizer: FIXTURE.path("model.tokenizer"), data }, out, options)
}

/// Interrupted in a later pass over the small folder.
#[test]
fn a_resumed_mixture_has_the_bytes_of_one_that_was_not_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let small = small_shards(dir.path());
    for (isolate_documents, packing) in [(false, Packing::Cut), (true, Packing::Cut), (false, Packing::BestFit)] {
        let change = |recipe: &mut PretrainRecipe| {
            recipe.data.isolate_documents = isolate_documents;
            recipe.data.packing = packing;
        };
        let [whole, torn] =
            ["whole", "torn"].map(|name| dir.path().join(format!("{name}-{isolate_documents}-{packing:?}")));
        let outcome = run(&small, &[0.5, 0.5], change, &whole, quiet()).unwrap();
        for name in ["eval_loss", "eval_loss_1", "eval_loss_2", "eval_bits_per_byte_2"] {
            assert!(outcome.metrics[name].is_finite(), "{name}");
        }
        let mean = f64::midpoint(outcome.metrics["eval_loss_1"], outcome.metrics["eval_loss_2"]);
        assert!((outcome.metrics["eval_loss"] - mean).abs() < 1e-9);
        for after in [5, 13, 22] {
            let (stop, mut steps) = (AtomicBool::new(false), 0);
            let mut watch = |event: Event| {
                if let Event::Progress { done, .. } = event {
                    steps = done / 32;
                    stop.store(steps >= after, SeqCst);
                }
            };
            let options = RunOptions { observer: &mut watch, stop: &stop, ..options(torn.exists()) };
            run(&small, &[0.5, 0.5], change, &torn, options).unwrap_err();
        }
        run(&small, &[0.5, 0.5], change, &torn, options(true)).unwrap();
        let (expected, found) = (contents(&whole), contents(&torn));
        let different: Vec<_> = expected.keys().filter(|name| expected.get(*name) != found.get(*name)).collect();
        assert!(different.is_empty() && expected.len() == found.len(), "{different:?}");
    }
}

/// The loss of each step, in which the gradients of the micro-batches add up.
#[test]
fn micro_batches_have_the_rows_of_the_whole_batch() {
    let dir = tempfile::tempdir().unwrap();
    let small = small_shards(dir.path());
    let losses = |batch_size: usize, micro_batches: u64| -> Vec<f64> {
        let out = dir.path().join(format!("run-{batch_size}"));
        let change = |recipe: &mut PretrainRecipe| {
            (recipe.batch_size, recipe.gradient_accumulation_steps) = (batch_size, micro_batches);
        };
        run(&small, &[3., 1.], change, &out, quiet()).unwrap();
        let lines = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let lines = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter_map(|line| line["loss"].as_f64()).collect()
    };
    let whole = losses(4, 1);
    assert_eq!(whole.len(), 30);
    for (batch_size, micro_batches) in [(2, 2), (1, 4)] {
        let parts = losses(batch_size, micro_batches);
        assert!(parts.iter().zip(&whole).all(|(a, b)| (a / b - 1.).abs() < 1e-3), "{parts:?} {whole:?}");
    }
}

#[test]
fn weights_must_fit_the_folders() {
    let dir = tempfile::tempdir().unwrap();
    let (small, out) = (small_shards(dir.path()), dir.path().join("run"));
    for (weights, expected) in [
        (&[1.][..], "data.weights has 1 numbers for 2 files of --data"),
        (&[0., 0.], "data.weights is 0 for all files; it must be above 0 for at least one"),
        (&[1., -1.], "data.weights is -1; it must be a number from 0 to 1000"),
    ] {
        let message = run(&small, weights, |_| (), &out, quiet()).unwrap_err().to_string();
        assert!(message.contains(expected) && !out.exists(), "{message}");
    }
    // Without weights, and with extreme ones.
    run(&small, &[], |_| (), &dir.path().join("sizes"), quiet()).unwrap();
    run(&small, &[0.001, 0.999], |_| (), &dir.path().join("extreme"), quiet()).unwrap();
}
