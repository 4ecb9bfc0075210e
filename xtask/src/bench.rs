//! `cargo xtask bench`: ours and the peers in turn, in one run on one machine; medians and ratios.
//!
//! A contender is a command that prints one JSON object with the figures of its run. The rounds go through all
//! contenders one after the other, so that a machine that drifts drifts for all of them.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{Args, Subcommand};
use serde_json::{Map, Value};

/// What is compared.
#[derive(Subcommand)]
pub enum Bench {
    /// Each kernel alone, against what the machine can multiply and read
    Kernels {
        /// Threads
        #[arg(long, default_value_t = 2)]
        threads: usize,
    },
    /// The pre-training step: forward, backward, clipping, AdamW
    Train(Options),
    /// Reading a prompt of 512 tokens and generating behind it, in the shape of SmolLM2-135M with random weights
    Infer(Options),
}

#[derive(Args)]
pub struct Options {
    /// A Python that has the peers (docs/performance.md says how to make it)
    #[arg(long, value_name = "PYTHON")]
    peers: Option<PathBuf>,
    /// How often each contender runs
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Threads for each contender
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

struct Contender {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
}

/// The shape of the training benchmark: our key, the peer's option, the value.
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

/// The precisions of the training benchmark, with the modes of PyTorch that have them: the best is the one to beat.
const PRECISIONS: [(&str, [(&str, &str); 2]); 2] = [
    ("f32", [("PyTorch f32, eager", "eager-f32"), ("PyTorch f32, compiled", "compiled-f32")]),
    ("bf16", [("PyTorch bf16, eager", "eager-bf16"), ("PyTorch bf16, compiled", "compiled-bf16")]),
];

/// What the matrices are held in, and the engines of peers that have it.
const DTYPES: [(&str, &[&str]); 6] = [
    ("f32", &["llama.cpp", "transformers"]),
    ("bf16", &["llama.cpp", "transformers"]),
    ("q8_0", &["llama.cpp"]),
    ("q4_0", &["llama.cpp"]),
    ("q4_k", &["llama.cpp"]),
    ("q6_k", &["llama.cpp"]),
];

/// Runs a comparison; an error is one line for the person.
pub fn run(bench: &Bench) -> Result<(), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    match bench {
        // Kernels are timed in this process, which must be optimised as the programs are.
        Bench::Kernels { threads } if cfg!(debug_assertions) => {
            build(&root, "xtask")?;
            let arguments = ["bench", "kernels", "--threads", &threads.to_string()];
            let status = Command::new(root.join("target/release/xtask")).args(arguments).status();
            if status.is_ok_and(|status| status.success()) { Ok(()) } else { Err("the kernels failed".to_owned()) }
        }
        Bench::Kernels { threads } => crate::kernels::run(*threads),
        Bench::Train(options) | Bench::Infer(options) if options.rounds == 0 => {
            Err("--rounds is 0; each contender must run at least once".to_owned())
        }
        Bench::Train(options) => train(options, &root),
        Bench::Infer(options) => infer(options, &root),
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn train(options: &Options, root: &Path) -> Result<(), String> {
    build(root, "llm-train")?;
    let threads = options.threads.to_string();
    let script = root.join("xtask/peers/train.py").display().to_string();
    // One table for each precision: ratios across them would say nothing.
    for (precision, modes) in PRECISIONS {
        let mut contenders = Vec::new();
        for (suffix, checkpointing) in [("", "false"), (", activations checkpointed", "true")] {
            let mut arguments = words(&["bench", "--threads", &threads, "--set"]);
            arguments.push(format!("optimizer.precision={precision}"));
            arguments.extend(["--set".to_owned(), format!("activation_checkpointing={checkpointing}")]);
            for (key, _, value) in TRAIN_SHAPE {
                arguments.extend(["--set".to_owned(), format!("{key}={value}")]);
            }
            let (name, program) = (format!("ours, {precision}{suffix}"), root.join("target/release/llm-train"));
            contenders.push(Contender { name, program, arguments });
        }
        for (name, mode) in modes {
            let Some(python) = &options.peers else { break };
            let mut arguments = words(&[&script, "--mode", mode, "--threads", &threads]);
            arguments
                .extend(TRAIN_SHAPE.iter().flat_map(|(_, option, value)| [(*option).to_owned(), value.to_string()]));
            contenders.push(Contender { name: name.to_owned(), program: python.clone(), arguments });
        }
        let figures = [("tokens/s", "tokens_per_second", 1.), ("peak memory, MB", "peak_memory", 1e-6)];
        println!("{}", compare(&contenders, &figures, options.rounds)?);
    }
    Ok(())
}

fn infer(options: &Options, root: &Path) -> Result<(), String> {
    build(root, "llm-infer")?;
    let threads = options.threads.to_string();
    let config = root.join("xtask/peers/smollm2-135m.json").display().to_string();
    let script = root.join("xtask/peers/infer.py").display().to_string();
    let folder = root.join("target/peers/smollm2-135m");
    let model = folder.display().to_string();
    if let Some(python) = &options.peers
        && !folder.exists()
    {
        let made = Command::new(python).args([&script, "--make", &config, "--out", &model]).status();
        if !made.is_ok_and(|status| status.success()) {
            std::fs::remove_dir_all(&folder).ok();
            return Err(format!("{} cannot make {model}; what is wrong stands above", python.display()));
        }
    }
    // One table for each dtype: ratios across them would say nothing.
    for (dtype, engines) in DTYPES {
        let arguments = words(&["bench", "--threads", &threads, "--config", &config, "--dtype", dtype]);
        let mut contenders = vec![Contender {
            name: format!("ours, {dtype}"),
            program: root.join("target/release/llm-infer"),
            arguments,
        }];
        for engine in engines.iter().filter(|_| options.peers.is_some()) {
            let arguments =
                words(&[&script, "--engine", engine, "--dtype", dtype, "--model", &model, "--threads", &threads]);
            let program = options.peers.clone().unwrap_or_default();
            contenders.push(Contender { name: format!("{engine}, {dtype}"), program, arguments });
        }
        let figures = [
            ("prefill, tokens/s", "prefill_tokens_per_second", 1.),
            ("decode, tokens/s", "decode_tokens_per_second", 1.),
            ("peak memory, MB", "peak_memory", 1e-6),
        ];
        println!("{}", compare(&contenders, &figures, options.rounds)?);
    }
    Ok(())
}

fn build(root: &Path, package: &str) -> Result<(), String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let arguments = ["build", "--release", "--quiet", "--package", package];
    match Command::new(cargo).args(arguments).current_dir(root).status() {
        Ok(status) if status.success() => Ok(()),
        _ => Err(format!("{package} does not build; run `cargo build --release -p {package}`")),
    }
}

/// Runs all contenders in turn, `rounds` times; a table of the medians, and of the first one's ratio to each.
fn compare(contenders: &[Contender], figures: &[(&str, &str, f64)], rounds: usize) -> Result<String, String> {
    let mut seen: Vec<Vec<Map<String, Value>>> = contenders.iter().map(|_| Vec::new()).collect();
    for round in 1..=rounds {
        for (contender, seen) in contenders.iter().zip(&mut seen) {
            eprintln!("xtask: round {round} of {rounds}: {}", contender.name);
            let figures = measure(contender)?;
            eprintln!("xtask: {}", Value::Object(figures.clone())); // not lost if a later one is too slow to wait for
            seen.push(figures);
        }
    }
    let median = |runs: &[Map<String, Value>], key: &str| -> Option<f64> {
        let mut values: Vec<f64> = runs.iter().filter_map(|run| run.get(key)?.as_f64()).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    let mut table = String::from("|");
    let heads = figures.iter().flat_map(|(title, ..)| [(*title).to_owned(), "ours to it".to_owned()]);
    let heads: Vec<String> = std::iter::once("contender".to_owned()).chain(heads).collect();
    table.push_str(&heads.iter().map(|head| format!(" {head} |")).collect::<String>());
    table.push_str(&format!("\n|{}\n", "---|".repeat(heads.len())));
    for (contender, runs) in contenders.iter().zip(&seen) {
        table.push_str(&format!("| {} |", contender.name));
        for (_, key, unit) in figures {
            let cells = match (median(runs, key), median(&seen[0], key)) {
                (Some(its), Some(ours)) => format!(" {:.0} | {:.2} |", its * unit, ours / its),
                _ => " - | - |".to_owned(),
            };
            table.push_str(&cells);
        }
        table.push('\n');
    }
    Ok(table)
}

/// The JSON object on the last line that a contender prints.
fn measure(contender: &Contender) -> Result<Map<String, Value>, String> {
    let name = &contender.name;
    let output = Command::new(&contender.program)
        .args(&contender.arguments)
        .output()
        .map_err(|e| format!("{}: {e}", contender.program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    match serde_json::from_str(last) {
        Ok(figures) if output.status.success() => Ok(figures),
        _ => {
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            let why = errors.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it printed no figures");
            Err(format!("{name}: {why}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(name: &str, script: &str) -> Contender {
        let arguments = vec!["-c".to_owned(), script.to_owned()];
        Contender { name: name.to_owned(), program: PathBuf::from("sh"), arguments }
    }

    #[test]
    fn a_table_holds_medians_and_ratios() {
        let contenders = [shell("ours", "echo '{\"rate\": 30}'"), shell("theirs", "echo noise; echo '{\"rate\": 20}'")];
        let table = compare(&contenders, &[("tokens/s", "rate", 1.), ("memory", "none", 1.)], 2).unwrap();
        assert!(table.contains("| ours | 30 | 1.00 | - | - |") && table.contains("| theirs | 20 | 1.50 |"), "{table}");
    }

    #[test]
    fn a_contender_that_fails_says_why() {
        let message = compare(&[shell("broken", "echo no module >&2; exit 1")], &[], 1).unwrap_err();
        assert_eq!(message, "broken: no module");
    }
}
