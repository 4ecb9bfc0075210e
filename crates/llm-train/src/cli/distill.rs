//! The options of distillation, of stored logits and of the table of models.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use llm_cli::key_value;
use llm_engine::InferenceCost;

use super::preview::Rows;
use super::{Common, Stage};
use crate::Error;
use crate::recipes::{DistillInputs, TeacherLogitsInputs, measure_decode};

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  llm-train distill --teacher runs/aligned --data chats.jsonl --out runs/student --set temperature=2"
)]
pub(super) struct Distill {
    #[command(flatten)]
    pub(super) inputs: DistillInputs,
    /// Folder to write; must not exist
    #[arg(long, value_name = "DIR", display_order = 2)]
    pub(super) out: PathBuf,
    /// Train on the teacher's own answers to the conversations of --data, as `--set sequence_level=true`
    #[arg(long, conflicts_with = "resume")]
    pub(super) sequence_level: bool,
    #[command(flatten)]
    pub(super) rows: Rows,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, Subcommand)]
pub(super) enum TeacherLogits {
    /// Run the teacher over conversations and write its most likely tokens to a folder
    #[command(
        after_help = "Example:\n  llm-train teacher-logits write --teacher runs/aligned --data chats.jsonl --out runs/logits\n  \
                  llm-train distill --teacher runs/aligned --teacher-logits runs/logits --data chats.jsonl --out runs/student"
    )]
    Write(Stage<TeacherLogitsInputs>),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  llm-train bench-decode --model runs/student")]
pub(super) struct BenchDecode {
    /// Folder of the model, or a GGUF file
    #[arg(long, value_name = "DIR|FILE")]
    pub(super) model: PathBuf,
}

impl BenchDecode {
    /// Measures in a process of its own, so that the peak memory is that of the model. Another program than `llm-train` that uses its
    /// commands measures in its own process.
    pub(super) fn in_new_process(model: &Path) -> Result<InferenceCost, Error> {
        let program =
            std::env::current_exe().ok().filter(|path| path.file_stem().is_some_and(|name| name == "llm-train"));
        let Some(program) = program else { return measure_decode(model) };
        let threads = rayon::current_num_threads().to_string();
        let mut command = std::process::Command::new(&program);
        let command = command.args(["--threads", &threads, "bench-decode", "--model"]).arg(model);
        let output = command.output().map_err(Error::io(&program))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let found: Option<serde_json::Value> = serde_json::from_str(&text).ok().filter(|_| output.status.success());
        let number = |key: &str| found.as_ref()?.get(key)?.as_f64();
        match (number("parameters"), number("prefill_tokens_per_second"), number("decode_tokens_per_second")) {
            (Some(parameters), Some(prefill_tokens_per_second), Some(decode_tokens_per_second)) => Ok(InferenceCost {
                parameters: parameters as usize,
                prefill_tokens_per_second,
                decode_tokens_per_second,
                peak_memory: number("peak_memory").map(|bytes| bytes as u64),
            }),
            _ => {
                let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                Err(Error::Internal(format!("{}: its decoding cannot be measured: {message}", model.display())))
            }
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  llm-train distill-report runs/student")]
pub(super) struct ReportDistill {
    /// Folder of the run
    #[arg(value_name = "DIR")]
    pub(super) run: PathBuf,
    /// New location of an input of the run, such as `teacher=runs/teacher`; may be repeated [default: the recorded path]
    #[arg(long, value_name = "NAME=PATH", value_parser = key_value)]
    pub(super) input: Vec<(String, String)>,
}
