//! `cargo xtask bench align`: DPO, reward models and GRPO beside TRL, on equal batches.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use serde_json::Value;

use super::build;

#[derive(Args)]
pub struct AlignOptions {
    /// Folder of a chat model in the Hugging Face format
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Pairs of answers in JSONL (prompt, chosen, rejected, or dialogues of HH), for DPO and the reward model
    #[arg(long, value_name = "FILE")]
    pairs: PathBuf,
    /// Prompts in JSONL (prompt, or question as GSM8K), for GRPO
    #[arg(long, value_name = "FILE")]
    prompts: PathBuf,
    /// Python interpreter with the packages trl and peft (docs/performance.md)
    #[arg(long, value_name = "PYTHON", alias = "peers")]
    baselines: PathBuf,
    /// Number of steps of DPO and of the reward model; GRPO takes a quarter of them
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// Pairs per step
    #[arg(long, default_value_t = 8)]
    batch_size: usize,
    /// Number of threads of each program
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

/// Runs both programs for each stage, one after the other, and prints a table of the ratios.
pub fn bench(options: &AlignOptions, root: &Path) -> Result<(), String> {
    if options.steps < 8 {
        return Err(format!("--steps is {}; it must be at least 8, so that GRPO has two steps", options.steps));
    }
    build(root, "llm-train")?;
    let (steps, few) = (options.steps.to_string(), (options.steps / 4).to_string());
    let pairs = ["--pairs".to_owned(), options.batch_size.to_string(), "--steps".to_owned(), steps];
    println!("| stage | times as fast as TRL | peak memory, ours / TRL | largest and mean difference of the losses |");
    println!("|---|---|---|---|");
    for (stage, script, data, more) in [
        ("dpo", "trl_dpo.py", &options.pairs, [&["--stage".to_owned(), "dpo".to_owned()], &pairs[..]].concat()),
        ("reward", "trl_dpo.py", &options.pairs, [&["--stage".to_owned(), "reward".to_owned()], &pairs[..]].concat()),
        ("grpo", "trl_grpo.py", &options.prompts, vec!["--steps".to_owned(), few]),
    ] {
        let summary = summary(options, (root, script), data, &more).map_err(|e| format!("{stage}: {e}"))?;
        let number = |key: &str| summary.get(key).and_then(Value::as_f64);
        let (Some(speed), Some(memory)) = (number("times_as_fast"), number("memory_ratio")) else {
            return Err(format!("{stage}: {script} printed no summary but {summary}"));
        };
        let losses = match (number("largest_difference"), number("mean_difference")) {
            (Some(largest), Some(mean)) => format!("{:.3} %, {:.3} %", 100. * largest, 100. * mean),
            _ => "sampled".to_owned(),
        };
        println!("| {stage} | {speed:.2} | {memory:.2} | {losses} |");
    }
    Ok(())
}

/// The last line of the script, which runs both programs. Its other lines go to standard error.
fn summary(
    options: &AlignOptions,
    (root, script): (&Path, &str),
    data: &Path,
    more: &[String],
) -> Result<Value, String> {
    let mut command = Command::new(&options.baselines);
    command.arg(root.join("xtask/baselines").join(script));
    command.arg("--model").arg(&options.model).arg("--data").arg(data);
    command.arg("--program").arg(root.join("target/release/llm-train"));
    command.arg("--threads").arg(options.threads.to_string()).args(more);
    let output = command.stderr(std::process::Stdio::inherit()).output();
    let output = output.map_err(|e| format!("{}: {e}", options.baselines.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    eprint!("{text}");
    if !output.status.success() {
        return Err(format!("{script} failed; see its output above"));
    }
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).map_err(|e| format!("{script}: its last line is no JSON object: {e}"))
}
