//! The table at the end of distillation: the teacher, the student, the same student without the teacher, and the quantised student.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use candle_core::Device;
use llm_engine::{InferenceCost, TextModel, bench};
use llm_eval::task_scores;
use llm_kernels::BlockFormat;
use llm_model::{Model, WeightDtype, write_atomic};
use llm_synthetic::Task;
use serde::{Deserialize, Serialize};

use super::teachers::Source;
use super::trainer::evaluate;
use super::{CONTROL, DistillInputs, DistillRecipe, Validation, examples, validation_of};
use crate::recipes::{chat_format, load_tokenizer};
use crate::run::write_json;
use crate::{Error, Result};

/// A model in the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DistillRow {
    /// What it is: `teacher`, `student`, `student without teacher`, `student in q8_0`.
    pub model: String,
    /// Number of parameters.
    pub parameters: usize,
    /// Bytes of its weights in files.
    pub bytes: u64,
    /// Mean cross-entropy of the validation answers, in nats per token.
    pub loss: f64,
    /// `KL(teacher ‖ model)` at temperature 1 on the validation answers, in nats per token.
    pub kl: f64,
    /// Share of right answers to the tasks, if there are any.
    pub task_score: Option<f64>,
    /// Decoded tokens per second at batch size 1: the median of the rounds, the lowest and the highest.
    pub tokens_per_second: [f64; 3],
    /// Peak memory of a process that loads and runs the model, in bytes; none if the system does not report it.
    pub peak_memory: Option<u64>,
}

/// The table at the end of a run of [`super::distill`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DistillReport {
    /// A row for each model; the teacher is the first.
    pub rows: Vec<DistillRow>,
}

/// Measures the decoding of the model in a folder or GGUF file: greedy, at batch size 1.
pub type MeasureDecode<'a> = dyn Fn(&Path) -> Result<InferenceCost> + 'a;

/// Prompt and answer of a measurement of decoding, in tokens; a shorter context halves them.
const DECODED: (usize, usize) = (32, 96);
/// Each model is measured this often, in turns.
const ROUNDS: usize = 3;
/// The longest answer to a task, in tokens.
const ANSWER: usize = 64;

/// [`MeasureDecode`] in this process; the peak memory is that of all that it has done.
pub fn measure_decode(path: &Path) -> Result<InferenceCost> {
    let model = TextModel::open(path)?.model;
    let context = model.config().max_position_embeddings;
    let (mut prompt, mut new) = DECODED;
    while prompt + new > context && prompt > 1 {
        (prompt, new) = (prompt / 2, (new / 2).max(2));
    }
    Ok(bench(&model, prompt, new, 1)?)
}

/// The tasks of a file of the built-in world.
pub(super) fn read_tasks(path: &Path) -> Result<Vec<Task>> {
    let task = |(line, value)| {
        serde_json::from_value(value).map_err(|e| Error::BadFile(format!("{} line {line}: {e}", path.display())))
    };
    llm_data::read_jsonl(path)?.into_iter().map(task).collect()
}

/// Evaluates and measures the models of the finished run in `out`, and writes `distillation.md`, `distillation.json` and the quantised student,
/// `student-q8_0.gguf`.
pub fn distill_report(
    recipe: &DistillRecipe,
    inputs: &DistillInputs,
    out: impl AsRef<Path>,
    measure: &MeasureDecode,
) -> Result<DistillReport> {
    let out = out.as_ref();
    let tokenizer = load_tokenizer(&inputs.teacher)?.with_end_of_turn_as_eos();
    let pad = chat_format(&tokenizer, &inputs.teacher)?.pad;
    let teacher = TextModel::load(&inputs.teacher)?;
    let scratch = llm_files::temp_folder(out.join("models")).map_err(Error::io(out))?;
    let mut models = vec![("teacher", inputs.teacher.clone())];
    models.push(("student", whole(out, inputs, scratch.path())?));
    let control = out.join(CONTROL);
    if recipe.control {
        models.push(("student without teacher", whole(&control, inputs, scratch.path())?));
    }
    let quantised = out.join("student-q8_0.gguf");
    // In the place of that of an earlier table: the run can have been extended.
    let fresh = scratch.path().join("student-q8_0.gguf");
    TextModel::load(&models[1].1)?.save_gguf(&fresh, Some(WeightDtype::Quantized(BlockFormat::Q8_0)))?;
    std::fs::rename(&fresh, &quantised).map_err(Error::io(&quantised))?;
    models.push(("student in q8_0", quantised));
    let positions = teacher.model.config().max_position_embeddings;
    let student = Model::open(&models[1].1)?;
    let max_length = recipe.max_length.min(positions).min(student.config().max_position_embeddings);
    let (_, validation) = examples(recipe, inputs, &tokenizer, max_length)?;
    let validation = validation_of(recipe, &validation, pad);
    let tasks = inputs.tasks.as_deref().map(read_tasks).transpose()?;
    let loss = recipe.loss(tokenizer.vocab_size());
    let source = Source::Model(Box::new(teacher.model));
    let mut rows = Vec::new();
    for (name, path) in &models {
        tracing::info!("{name}: loss, divergence and tasks");
        rows.push(row(name, path, (&source, &loss), &validation, tasks.as_deref())?);
    }
    let mut speeds = vec![Vec::new(); models.len()];
    for _ in 0..ROUNDS {
        for (at, (_, path)) in models.iter().enumerate() {
            let cost = measure(path)?;
            speeds[at].push(cost.decode_tokens_per_second);
            rows[at].peak_memory = rows[at].peak_memory.max(cost.peak_memory);
        }
    }
    for (row, mut speeds) in rows.iter_mut().zip(speeds) {
        speeds.sort_by(f64::total_cmp);
        row.tokens_per_second = [speeds[ROUNDS / 2], speeds[0], speeds[ROUNDS - 1]];
    }
    let report = DistillReport { rows };
    let json = serde_json::to_value(&report).map_err(|e| Error::Internal(format!("distillation.json: {e}")))?;
    write_json(&out.join("distillation.json"), &json)?;
    write_atomic(&out.join("distillation.md"), report.table().as_bytes())?;
    Ok(report)
}

/// The folder of the whole model of a run: its own, or that of its adapter merged into the student.
fn whole(run: &Path, inputs: &DistillInputs, scratch: &Path) -> Result<PathBuf> {
    let Some(base) = inputs.student.as_ref().filter(|_| run.join("adapter_config.json").is_file()) else {
        return Ok(run.to_owned());
    };
    let name = run.file_name().unwrap_or(run.as_os_str());
    let dir = scratch.join(name);
    let mut model = Model::load(base)?;
    model.load_adapter("trained", run)?;
    model.use_adapter(Some("trained"))?;
    model.merged()?.save(&dir)?;
    load_tokenizer(run)?.save(&dir)?;
    Ok(dir)
}

/// The row of a model, without the measurement of its decoding.
fn row(
    name: &str,
    path: &Path,
    (teacher, loss): (&Source, &crate::loss::DistillationOptions),
    validation: &Validation,
    tasks: Option<&[Task]>,
) -> Result<DistillRow> {
    let text = if path.is_dir() { TextModel::load(path)? } else { TextModel::open(path)? };
    let text = text.to_device(&Device::Cpu)?;
    let metrics = evaluate((&text.model, teacher), validation, loss)?;
    let metric = |name: &str| metrics.iter().find(|(known, _)| *known == name).map_or(f64::NAN, |(_, value)| *value);
    let task_score = tasks.map(|tasks| task_scores(&text, tasks, ANSWER)).transpose()?.map(|scores| scores.total);
    Ok(DistillRow {
        model: name.to_owned(),
        parameters: text.model.count().total(),
        bytes: weight_bytes(path)?,
        loss: metric("eval_loss"),
        kl: metric("eval_kl"),
        task_score,
        tokens_per_second: [f64::NAN; 3],
        peak_memory: None,
    })
}

/// The bytes of a file, or of the weights in a folder.
fn weight_bytes(path: &Path) -> Result<u64> {
    let size = |path: &Path| std::fs::metadata(path).map(|data| data.len()).map_err(Error::io(path));
    if !path.is_dir() {
        return size(path);
    }
    let mut bytes = 0;
    for entry in std::fs::read_dir(path).map_err(Error::io(path))? {
        let file = entry.map_err(Error::io(path))?.path();
        if file.extension().is_some_and(|extension| extension == "safetensors") {
            bytes += size(&file)?;
        }
    }
    Ok(bytes)
}

impl DistillReport {
    /// The table in Markdown. Ratios are relative to the teacher.
    pub fn table(&self) -> String {
        let mut text = "| model | parameters | bytes | loss | task score | KL to the teacher | tokens/s (range) | of the teacher's | \
                        peak memory, MB |\n|---|---|---|---|---|---|---|---|---|\n"
            .to_owned();
        let base = self.rows.first().map_or(f64::NAN, |row| row.tokens_per_second[0]);
        for row in &self.rows {
            let score = row.task_score.map_or("-".to_owned(), |score| format!("{:.1} %", 100. * score));
            let memory = row.peak_memory.map_or("-".to_owned(), |bytes| format!("{:.1}", bytes as f64 / 1e6));
            let [median, low, high] = row.tokens_per_second;
            writeln!(
                text,
                "| {} | {} | {} | {:.4} | {score} | {:.4} | {median:.0} ({low:.0} to {high:.0}) | {:.2} | {memory} |",
                row.model,
                row.parameters,
                row.bytes,
                row.loss,
                row.kl,
                median / base
            )
            .ok();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_line_for_each_model() {
        let row = |model: &str, speed| DistillRow {
            model: model.to_owned(),
            parameters: 1000,
            bytes: 4100,
            loss: 1.25,
            kl: 0.5,
            task_score: (model == "teacher").then_some(0.931),
            tokens_per_second: [speed, speed - 1., speed + 1.],
            peak_memory: Some(12_340_000),
        };
        let table = DistillReport { rows: vec![row("teacher", 100.), row("student", 250.)] }.table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[2], "| teacher | 1000 | 4100 | 1.2500 | 93.1 % | 0.5000 | 100 (99 to 101) | 1.00 | 12.3 |");
        assert_eq!(lines[3], "| student | 1000 | 4100 | 1.2500 | - | 0.5000 | 250 (249 to 251) | 2.50 | 12.3 |");
    }
}
