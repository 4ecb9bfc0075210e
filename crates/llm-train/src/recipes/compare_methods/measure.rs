//! Measures the models of the comparison, and writes the table.

use std::path::{Path, PathBuf};

use candle_core::Device;
use llm_data::TokenDataset;
use llm_engine::{GenerateOptions, Sampling, TextModel};
use llm_eval::stats::cluster_bootstrap;
use llm_eval::{TextWindows, generate_replies, task_scores, text_loss};
use llm_model::Head;
use llm_model::cost::{TrainingMemory, TrainingShape};
use llm_synthetic::{SplitKey, Task};

use super::CompareMethodsRecipe;
use crate::{Error, Result};

/// More than the longest correct answer.
const MAX_NEW_TOKENS: usize = 64;
/// Batches of validation text.
const EVAL_BATCHES: usize = 40;

/// The text of a file.
pub(super) fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(Error::io(path))
}

/// A trained model of the comparison.
pub(super) struct Measured {
    name: &'static str,
    dir: PathBuf,
    seconds: f64,
}

impl Measured {
    pub fn new(name: &'static str, dir: PathBuf, seconds: f64) -> Self {
        Self { name, dir, seconds }
    }
}

/// What the models are measured on.
pub(super) struct Measuring<'a> {
    pub recipe: &'a CompareMethodsRecipe,
    /// Token shards of the domains.
    pub general: &'a Path,
    pub facts: &'a Path,
    pub tasks: &'a [Task],
    pub device: &'a Device,
}

impl Measuring<'_> {
    /// The report on all models.
    pub fn report(&self, models: Vec<Measured>) -> Result<String> {
        let mut text = format!(
            "# Ways to give a model an ability\n\nLosses are in nats per token on validation text. Tasks are {} questions about facts that \
             are in the domain text but in no conversation: as a prompt for text completion (prompting without training) and as a question \
             in a chat, with 95 % intervals of a bootstrap over facts. The time is that of the method's own training; the memory is the \
             estimate of `llm-train params` for one step.\n\n\
             | method | domain loss | general loss | tasks by prompting | tasks by chat | seconds | memory, MB |\n\
             |---|---|---|---|---|---|---|\n",
            self.tasks.len()
        );
        for model in models {
            text += &self.row(&model)?;
        }
        let chance = self.tasks.iter().map(|task| task.chance).sum::<f64>() / self.tasks.len().max(1) as f64;
        text += &format!(
            "\nGuessing gets {:.1} % of the tasks. A method forgets if its general loss is above that of pre-training on general text.\n",
            100. * chance
        );
        Ok(text)
    }

    fn row(&self, measured: &Measured) -> Result<String> {
        let model = TextModel::load(&measured.dir)?.to_device(self.device)?;
        let (batch_size, seq_len) = (self.recipe.pretrain.batch_size, self.recipe.pretrain.seq_len);
        let token_bytes = model.tokenizer.token_bytes();
        let loss = |shards: &Path| -> Result<f64> {
            let validation = TokenDataset::open(shards, "held_out")?;
            let windows = TextWindows {
                data: &validation,
                token_bytes: &token_bytes,
                batch_size,
                seq_len,
                max_batches: EVAL_BATCHES,
            };
            Ok(text_loss(&model.model, &windows)?.loss)
        };
        let (facts, general) = (loss(self.facts)?, loss(self.general)?);
        let chat = task_scores(&model, self.tasks, MAX_NEW_TOKENS)?.right;
        let precision = self.recipe.pretrain.optimizer.precision;
        let shape =
            TrainingShape { batch_size: batch_size as u64, seq_len: seq_len as u64, checkpointed: false, precision };
        let memory = TrainingMemory::of(model.model.config(), Head::LanguageModel, &shape).total();
        Ok(format!(
            "| {} | {facts:.3} | {general:.3} | {} | {} | {:.0} | {:.0} |\n",
            measured.name,
            self.share(&self.completed(&model)?),
            self.share(&chat),
            measured.seconds,
            memory as f64 / 1e6
        ))
    }

    /// Whether the model continues the beginning of a sentence with the answer of each task.
    fn completed(&self, model: &TextModel) -> Result<Vec<bool>> {
        let prompts = self.tasks.iter().map(|t| model.document_ids(&t.cloze.0)).collect::<Result<Vec<_>, _>>()?;
        let options = GenerateOptions {
            max_new_tokens: MAX_NEW_TOKENS / 2,
            stop_ids: Some(model.stop_ids()),
            sampling: Sampling { temperature: 0., ..Sampling::default() },
        };
        let replies = generate_replies(model, &prompts, &options, 100)?;
        Ok(self.tasks.iter().zip(&replies).map(|(task, reply)| task.completes_cloze(&reply.text)).collect())
    }

    /// The share of right tasks, with its interval over facts.
    fn share(&self, right: &[bool]) -> String {
        let values: Vec<f64> = right.iter().map(|&right| f64::from(u8::from(right))).collect();
        let mut keys: Vec<&SplitKey> = self.tasks.iter().map(|task| &task.key).collect();
        keys.sort_unstable();
        keys.dedup();
        let clusters: Vec<usize> = self.tasks.iter().map(|task| keys.binary_search(&&task.key).unwrap_or(0)).collect();
        let mean = 100. * values.iter().sum::<f64>() / values.len().max(1) as f64;
        match cluster_bootstrap(&values, &clusters, 0) {
            Ok(interval) => format!("{mean:.1} % ({:.1} to {:.1})", 100. * interval.low, 100. * interval.high),
            Err(_) => format!("{mean:.1} %"),
        }
    }
}
