//! `cargo xtask bench finetune`: fine-tuning beside TRL, on equal batches.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, Value};

use super::{Options, Program, build, measure_all, names, table, words};

#[derive(Args)]
pub struct FinetuneOptions {
    /// Folder of a model whose chat template writes `<|im_start|>role`, the content and `<|im_end|>`
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Conversations in JSONL (`messages`), taken in this order
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Number of steps of each program
    #[arg(long, default_value_t = 50)]
    steps: usize,
    /// Conversations per step
    #[arg(long, default_value_t = 8)]
    batch_size: usize,
    #[command(flatten)]
    pub(super) programs: Options,
}

/// Runs all programs in turn and prints a table for all weights and one for LoRA.
pub(super) fn finetune(options: &FinetuneOptions, root: &Path) -> Result<(), String> {
    build(root, "llm-train")?;
    let (model, data) = (options.model.display().to_string(), options.data.display().to_string());
    let (steps, batch_size) = (options.steps.to_string(), options.batch_size.to_string());
    let threads = options.programs.threads.to_string();
    let script = root.join("xtask/baselines/finetune.py").display().to_string();
    let same = ["--model", &model, "--data", &data, "--steps", &steps, "--threads", &threads];
    // The settings of `finetune.py`.
    let settings = ["learning_rate=1e-5", "warmup_steps=0", "weight_decay=0.0"].map(|key| format!("optimizer.{key}"));
    let lora = ["lora.r=8", "lora.lora_alpha=16", "lora.target_modules=\"all-linear\""].map(str::to_owned);
    for (mode, keys) in [("full", &[][..]), ("lora", &lora[..])] {
        let mut programs = Vec::new();
        for (suffix, checkpointing) in [("", "false"), ("-checkpointed", "true")] {
            let batch = [format!("batch_size={batch_size}"), format!("activation_checkpointing={checkpointing}")];
            let constant = ["optimizer.schedule=\"constant\"".to_owned(), "optimizer.precision=\"bf16\"".to_owned()];
            let mut arguments = words(&["bench-finetune"]);
            arguments.extend(words(&same));
            for key in settings.iter().chain(&batch).chain(&constant).chain(keys) {
                arguments.extend(["--set".to_owned(), key.clone()]);
            }
            let executable = root.join("target/release/llm-train");
            programs.push(Program { name: format!("ours, {mode}{suffix}"), executable, arguments });
        }
        for suffix in ["", "-checkpointed"] {
            let Some(python) = &options.programs.baselines else { break };
            let mode = format!("{mode}{suffix}");
            let mut arguments = words(&[&script, "--mode", &mode, "--batch-size", &batch_size]);
            arguments.extend(words(&same));
            programs.push(Program { name: format!("TRL, {mode}"), executable: python.clone(), arguments });
        }
        let metrics = [("tokens/s", "tokens_per_second", 1.), ("peak memory, MB", "peak_memory", 1e-6)];
        let results = measure_all(&programs, options.programs.rounds)?;
        println!("{}", table(&names(&programs), &results, &metrics));
        for (program, runs) in programs.iter().zip(&results).skip(1) {
            println!("{}: {}", program.name, loss_difference(&results[0][0], &runs[0])?);
        }
    }
    Ok(())
}

/// The relative differences of the losses of two runs, step by step.
fn loss_difference(ours: &Map<String, Value>, other: &Map<String, Value>) -> Result<String, String> {
    let losses = |run: &Map<String, Value>| -> Option<Vec<f64>> {
        run.get("losses")?.as_array()?.iter().map(Value::as_f64).collect()
    };
    let count = |run: &Map<String, Value>| run.get("trained_tokens").and_then(Value::as_u64);
    let (Some(a), Some(b)) = (losses(ours), losses(other)) else { return Err("a run has no losses".to_owned()) };
    if a.len() != b.len() || a.is_empty() || count(ours) != count(other) {
        let (ours, other) = ((a.len(), count(ours)), (b.len(), count(other)));
        return Err(format!("the runs differ in (steps, trained tokens): {ours:?} and {other:?}"));
    }
    let differences: Vec<f64> = a.iter().zip(&b).map(|(a, b)| 100. * (a - b).abs() / b.abs()).collect();
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let largest = differences.iter().copied().fold(0., f64::max);
    let (first, last) = (b[0], b[b.len() - 1]);
    Ok(format!(
        "its losses ({first:.3} to {last:.3}) differ from ours by {:.2} % on average, at most {largest:.2} %",
        mean(&differences)
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn losses_are_compared_only_if_the_runs_trained_the_same_tokens() {
        let run = |tokens: u64, losses: &[f64]| match json!({"trained_tokens": tokens, "losses": losses}) {
            Value::Object(run) => run,
            _ => unreachable!(),
        };
        let text = loss_difference(&run(7, &[2.02, 1.]), &run(7, &[2., 1.])).unwrap();
        assert_eq!(text, "its losses (2.000 to 1.000) differ from ours by 0.50 % on average, at most 1.00 %");
        assert!(loss_difference(&run(7, &[2.]), &run(8, &[2.])).unwrap_err().contains("trained tokens"));
        assert!(loss_difference(&run(7, &[2.]), &run(7, &[2., 1.])).is_err());
    }
}
