//! `cargo xtask bench`: runs our programs and the baselines alternately on one machine and prints medians and ratios.
//!
//! Each program is a command that prints one JSON object with the metrics of its run. Every round runs all programs
//! once, so that a change of the clock speed during the benchmark affects all of them.

mod align;
mod finetune;
mod serve;

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{Args, Subcommand};
use llm_files::WeightDtype;
use serde_json::{Map, Value};

use self::finetune::{FinetuneOptions, finetune};

/// Which benchmark to run.
#[derive(Subcommand)]
pub enum Bench {
    /// Time each kernel and compare it with the peak compute rate and memory bandwidth of this machine
    Kernels {
        /// Number of threads
        #[arg(long, default_value_t = 2)]
        threads: usize,
    },
    /// Time one training step (forward, backward, gradient clipping, AdamW)
    Train(Options),
    /// Time prefill of 512 tokens and decoding, for a model of the shape of SmolLM2-135M with random weights
    Infer(Options),
    /// Time concurrent requests to our server and to llama.cpp's, with the same model file and prompts
    Serve(serve::ServeOptions),
    /// Train with DPO, a reward model and GRPO, beside TRL on equal batches: speed, memory, difference of the losses
    Align(align::AlignOptions),
    /// Time our encoder and trainer of tokenizers and those of the crate tokenizers, in one process
    Tokenizers(crate::tokenizers::TokenizerOptions),
    /// Time fine-tuning steps of a model on conversations, all weights and LoRA, and compare the losses with TRL's on equal batches
    Finetune(FinetuneOptions),
}

#[derive(Args)]
pub struct Options {
    /// Python interpreter that can import the baselines (docs/performance.md lists the packages); without it only our
    /// programs run
    #[arg(long, value_name = "PYTHON", alias = "peers")]
    baselines: Option<PathBuf>,
    /// Number of runs of each program
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Number of threads of each program
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

/// A command to measure.
struct Program {
    name: String,
    executable: PathBuf,
    arguments: Vec<String>,
}

/// The model and batch of the training benchmark: recipe key, option of `baselines/train.py`, value.
const TRAIN_SHAPE: [(&str, &str, u32); 8] = [
    ("model.vocab_size", "--vocab", 8192),
    ("model.hidden_size", "--hidden", 384),
    ("model.num_hidden_layers", "--layers", 6),
    ("model.num_attention_heads", "--heads", 6),
    ("model.num_key_value_heads", "--kv-heads", 6),
    ("model.intermediate_size", "--inner", 1024),
    ("batch_size", "--batch-size", 8),
    ("seq_len", "--seq-len", 512),
];

/// The precisions of the training benchmark, each with the modes of PyTorch to compare with: (name, `--mode`).
const PRECISIONS: [(&str, [(&str, &str); 2]); 2] = [
    ("f32", [("PyTorch f32, eager", "eager-f32"), ("PyTorch f32, compiled", "compiled-f32")]),
    ("bf16", [("PyTorch bf16, eager", "eager-bf16"), ("PyTorch bf16, compiled", "compiled-bf16")]),
];

/// The baselines of the inference benchmark that support weights of this dtype.
fn baselines_of(dtype: WeightDtype) -> &'static [&'static str] {
    match dtype {
        WeightDtype::F32 | WeightDtype::Bf16 => &["llama.cpp", "transformers"],
        WeightDtype::F16 | WeightDtype::Quantized(_) => &["llama.cpp"],
    }
}

/// Runs a benchmark and prints its table. An error is a message for the user, on one line.
pub fn run(bench: &Bench) -> Result<(), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    match bench {
        Bench::Kernels { threads } if cfg!(debug_assertions) => {
            run_release(&root, &words(&["bench", "kernels", "--threads", &threads.to_string()]))
        }
        Bench::Tokenizers(options) if options.rounds == 0 => {
            Err("--rounds is 0; each program must run at least once".to_owned())
        }
        Bench::Tokenizers(options) if cfg!(debug_assertions) => {
            run_release(&root, &crate::tokenizers::arguments(options))
        }
        Bench::Tokenizers(options) => crate::tokenizers::run(options),
        Bench::Kernels { threads } => crate::kernels::run(*threads),
        Bench::Train(options) | Bench::Infer(options) | Bench::Finetune(FinetuneOptions { programs: options, .. })
            if options.rounds == 0 =>
        {
            Err("--rounds is 0; each program must run at least once".to_owned())
        }
        Bench::Train(options) => train(options, &root),
        Bench::Infer(options) => infer(options, &root),
        Bench::Serve(options) => serve::bench(options, &root),
        Bench::Align(options) => align::bench(options, &root),
        Bench::Finetune(options) => finetune(options, &root),
    }
}

/// Runs a benchmark of this process again in a release build.
fn run_release(root: &Path, arguments: &[String]) -> Result<(), String> {
    build(root, "xtask")?;
    let status = Command::new(root.join("target/release/xtask")).args(arguments).status();
    if status.is_ok_and(|status| status.success()) { Ok(()) } else { Err("the benchmark failed".to_owned()) }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn train(options: &Options, root: &Path) -> Result<(), String> {
    build(root, "llm-train")?;
    let threads = options.threads.to_string();
    let script = root.join("xtask/baselines/train.py").display().to_string();
    // One table per precision: ratios between different precisions mean nothing.
    for (precision, modes) in PRECISIONS {
        let mut programs = Vec::new();
        for (suffix, checkpointing) in [("", "false"), (", activations checkpointed", "true")] {
            let mut arguments = words(&["bench", "--threads", &threads, "--set"]);
            arguments.push(format!("optimizer.precision={precision}"));
            arguments.extend(["--set".to_owned(), format!("activation_checkpointing={checkpointing}")]);
            for (key, _, value) in TRAIN_SHAPE {
                arguments.extend(["--set".to_owned(), format!("{key}={value}")]);
            }
            let name = format!("ours, {precision}{suffix}");
            programs.push(Program { name, executable: root.join("target/release/llm-train"), arguments });
        }
        for (name, mode) in modes {
            let Some(python) = &options.baselines else { break };
            let mut arguments = words(&[&script, "--mode", mode, "--threads", &threads]);
            arguments
                .extend(TRAIN_SHAPE.iter().flat_map(|(_, option, value)| [(*option).to_owned(), value.to_string()]));
            programs.push(Program { name: name.to_owned(), executable: python.clone(), arguments });
        }
        let metrics = [("tokens/s", "tokens_per_second", 1.), ("peak memory, MB", "peak_memory", 1e-6)];
        println!("{}", compare(&programs, &metrics, options.rounds)?);
    }
    Ok(())
}

fn infer(options: &Options, root: &Path) -> Result<(), String> {
    build(root, "llm-infer")?;
    let threads = options.threads.to_string();
    let config = root.join("xtask/baselines/smollm2-135m.json").display().to_string();
    let script = root.join("xtask/baselines/infer.py").display().to_string();
    let folder = root.join("target/baselines/smollm2-135m");
    let model = folder.display().to_string();
    // One table per dtype: ratios between different dtypes mean nothing.
    for dtype in WeightDtype::ALL.into_iter().filter(|dtype| *dtype != WeightDtype::F16) {
        let name = dtype.name();
        let mut ours = words(&["bench", "--threads", &threads]);
        match &options.baselines {
            // All programs read the same file, as a user's do.
            Some(python) => {
                make_baseline_file(python, (&script, &config), &folder, dtype)?;
                ours.extend(words(&["--model", &folder.join(format!("model-{name}.gguf")).display().to_string()]));
            }
            None => ours.extend(words(&["--config", &config, "--dtype", name])),
        }
        let executable = root.join("target/release/llm-infer");
        let mut programs = vec![Program { name: format!("ours, {dtype}"), executable, arguments: ours }];
        for engine in baselines_of(dtype).iter().filter(|_| options.baselines.is_some()) {
            let arguments =
                words(&[&script, "--engine", engine, "--dtype", name, "--model", &model, "--threads", &threads]);
            let executable = options.baselines.clone().unwrap_or_default();
            programs.push(Program { name: format!("{engine}, {dtype}"), executable, arguments });
        }
        let metrics = [
            ("prefill, tokens/s", "prefill_tokens_per_second", 1.),
            ("decode, tokens/s", "decode_tokens_per_second", 1.),
            ("peak memory, MB", "peak_memory", 1e-6),
        ];
        println!("{}", compare(&programs, &metrics, options.rounds)?);
    }
    Ok(())
}

/// Makes the model of the inference benchmark, with random weights, and its GGUF file of this dtype, unless they exist.
fn make_baseline_file(
    python: &Path,
    (script, config): (&str, &str),
    folder: &Path,
    dtype: WeightDtype,
) -> Result<(), String> {
    let model = folder.display().to_string();
    let run = |arguments: &[&str]| {
        let status = Command::new(python).arg(script).args(arguments).status();
        if status.is_ok_and(|status| status.success()) {
            return Ok(());
        }
        Err(format!("{} cannot make {model}; see its output above", python.display()))
    };
    if !folder.exists() {
        run(&["--make", config, "--out", &model]).inspect_err(|_| drop(std::fs::remove_dir_all(folder)))?;
    }
    if dtype == WeightDtype::F32 { Ok(()) } else { run(&["--quantize", dtype.name(), "--model", &model]) }
}

fn build(root: &Path, package: &str) -> Result<(), String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let arguments = ["build", "--release", "--quiet", "--package", package];
    match Command::new(cargo).args(arguments).current_dir(root).status() {
        Ok(status) if status.success() => Ok(()),
        _ => Err(format!("{package} does not build; run `cargo build --release -p {package}`")),
    }
}

/// Runs every program once per round; see [`table`].
fn compare(programs: &[Program], metrics: &[(&str, &str, f64)], rounds: usize) -> Result<String, String> {
    Ok(table(&names(programs), &measure_all(programs, rounds)?, metrics))
}

/// Runs every program once per round. Returns the metrics of its runs, for each program.
fn measure_all(programs: &[Program], rounds: usize) -> Result<Vec<Vec<Map<String, Value>>>, String> {
    let mut results: Vec<Vec<Map<String, Value>>> = programs.iter().map(|_| Vec::new()).collect();
    for round in 1..=rounds {
        for (program, runs) in programs.iter().zip(&mut results) {
            eprintln!("xtask: round {round} of {rounds}: {}", program.name);
            let metrics = measure(program)?;
            // Printed at once, so that the results of an interrupted benchmark are kept.
            eprintln!("xtask: {}", Value::Object(metrics.clone()));
            runs.push(metrics);
        }
    }
    Ok(results)
}

fn names(programs: &[Program]) -> Vec<&str> {
    programs.iter().map(|program| program.name.as_str()).collect()
}

/// A Markdown table with the median of each metric and the ratio of the first program's median to it. `metrics` are (column title,
/// key of the JSON object, factor).
fn table(names: &[&str], results: &[Vec<Map<String, Value>>], metrics: &[(&str, &str, f64)]) -> String {
    let median = |runs: &[Map<String, Value>], key: &str| -> Option<f64> {
        let mut values: Vec<f64> = runs.iter().filter_map(|run| run.get(key)?.as_f64()).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    let mut table = String::from("|");
    let heads = metrics.iter().flat_map(|(title, ..)| [(*title).to_owned(), "ours / this".to_owned()]);
    let heads: Vec<String> = std::iter::once("program".to_owned()).chain(heads).collect();
    table.push_str(&heads.iter().map(|head| format!(" {head} |")).collect::<String>());
    table.push_str(&format!("\n|{}\n", "---|".repeat(heads.len())));
    for (name, runs) in names.iter().zip(results) {
        table.push_str(&format!("| {name} |"));
        for (_, key, factor) in metrics {
            let cells = match (median(runs, key), median(&results[0], key)) {
                (Some(its), Some(ours)) => format!(" {:.0} | {:.2} |", its * factor, ours / its),
                _ => " - | - |".to_owned(),
            };
            table.push_str(&cells);
        }
        table.push('\n');
    }
    table
}

/// Runs a program and parses the JSON object on the last line of its output.
fn measure(program: &Program) -> Result<Map<String, Value>, String> {
    let name = &program.name;
    let output = Command::new(&program.executable)
        .args(&program.arguments)
        .output()
        .map_err(|e| format!("{}: {e}", program.executable.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    match serde_json::from_str(last) {
        Ok(metrics) if output.status.success() => Ok(metrics),
        _ => {
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            let why = errors.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it printed no JSON object");
            Err(format!("{name}: {why}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(name: &str, script: &str) -> Program {
        let arguments = vec!["-c".to_owned(), script.to_owned()];
        Program { name: name.to_owned(), executable: PathBuf::from("sh"), arguments }
    }

    #[test]
    fn the_table_contains_medians_and_ratios() {
        let programs = [shell("ours", "echo '{\"rate\": 30}'"), shell("theirs", "echo noise; echo '{\"rate\": 20}'")];
        let table = compare(&programs, &[("tokens/s", "rate", 1.), ("memory", "none", 1.)], 2).unwrap();
        assert!(table.contains("| ours | 30 | 1.00 | - | - |") && table.contains("| theirs | 20 | 1.50 |"), "{table}");
    }

    #[test]
    fn a_failing_program_reports_its_last_error_line() {
        let message = compare(&[shell("broken", "echo no module >&2; exit 1")], &[], 1).unwrap_err();
        assert_eq!(message, "broken: no module");
    }
}
