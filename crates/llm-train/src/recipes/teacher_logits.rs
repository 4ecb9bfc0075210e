//! Runs a teacher once over conversations and stores its most likely tokens at each trained position, for `distill`.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;

use llm_kernels::TopKLogprobs;
use llm_model::{Head, Model, read_config};
use llm_tokenizer::{ChatFormat, TrainOn};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{chat_format, load_model, load_tokenizer};
use crate::compat::check_compatible;
use crate::data::{DataOptions, one_or_several};
use crate::examples::{Example, answer_states};
use crate::rows::train_and_validation;
use crate::run::{Event, FINISHED, Outcome, RunOptions, RunSetup, Start, fingerprint, write_json};
use crate::teacher_logits::{self, Manifest, SHARD, data_hash, shard_path};
use crate::{Error, Result};

/// The recipe of [`teacher_logits`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherLogitsRecipe {
    /// Seed of the validation split; that of the distillation.
    pub seed: u64,
    /// The temperature of the log-probabilities; that of the distillation.
    pub temperature: f64,
    /// k: tokens per position, the most likely ones; the others are stored as one outcome.
    pub top_k: usize,
    /// Bits of a log-probability: 4 to 16, or 32 for f32.
    pub bits: u32,
    /// Conversations per batch.
    pub batch_size: usize,
    /// Longer conversations are left out, in tokens; that of the distillation.
    pub max_length: usize,
    /// How the data files are read; as in the distillation.
    pub data: DataOptions,
}

impl Default for TeacherLogitsRecipe {
    /// The built-in recipe.
    fn default() -> Self {
        crate::recipe::default()
    }
}

/// The inputs of [`teacher_logits`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct TeacherLogitsInputs {
    /// Folder of the teacher; on the command line also org/name of the Hugging Face hub.
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR"))]
    pub teacher: PathBuf,
    /// Data files or folders of conversations, as for `distill`; may be repeated.
    #[cfg_attr(feature = "cli", arg(long, required = true, num_args = 1.., value_name = "PATH"))]
    #[serde(deserialize_with = "one_or_several")]
    pub data: Vec<PathBuf>,
    /// Validation conversations, as for `distill` [default: those of 5 % of the prompts of --data, chosen by the recipe's seed].
    #[cfg_attr(feature = "cli", arg(long, value_name = "FILE", display_order = 3))]
    pub validation: Option<PathBuf>,
}

/// Writes the log-probabilities of a teacher to the folder `out`. A run that was interrupted goes on after the last complete shard.
#[tracing::instrument(level = "debug", skip_all, fields(run = %out.as_ref().display()))]
pub fn teacher_logits(
    recipe: &TeacherLogitsRecipe,
    inputs: &TeacherLogitsInputs,
    out: impl AsRef<Path>,
    options: RunOptions,
) -> Result<Outcome> {
    let setup = match RunSetup::check(recipe, inputs, out.as_ref(), options)? {
        Start::Open(setup) => setup,
        Start::Finished(outcome) => return Ok(outcome),
    };
    let tokenizer = load_tokenizer(&inputs.teacher)?.with_end_of_turn_as_eos();
    let ChatFormat { pad, .. } = *chat_format(&tokenizer, &inputs.teacher)?;
    let config = read_config(&inputs.teacher)?.config;
    check_compatible(&config, (&tokenizer, &inputs.teacher), &[])?;
    let files = (inputs.data.as_slice(), inputs.validation.as_deref());
    let max_length = recipe.max_length.min(config.max_position_embeddings);
    let (train, validation) =
        train_and_validation(files, &recipe.data, recipe.seed, (&tokenizer, TrainOn::All), max_length)?;
    if recipe.top_k > tokenizer.vocab_size() {
        let (k, vocab) = (recipe.top_k, tokenizer.vocab_size());
        return Err(Error::BadRequest(format!("top_k is {k}; the vocabulary has {vocab} tokens")));
    }
    let manifest = Manifest {
        version: 1,
        teacher: fingerprint("teacher", &inputs.teacher)?,
        tokenizer: tokenizer.fingerprint(),
        data: data_hash(&train, &validation),
        temperature: recipe.temperature,
        top_k: recipe.top_k,
        bits: recipe.bits,
        vocab: tokenizer.vocab_size(),
        train: train.len(),
        validation: validation.len(),
    };
    let teacher = load_model(&inputs.teacher, Head::LanguageModel)?.to_device(setup.device())?;
    let started = std::time::Instant::now();
    let (dir, options, _lock) = setup.open_folder()?;
    llm_files::remove_temp_files(&dir).map_err(Error::io(&dir))?;
    manifest.write(&dir)?;
    let all: Vec<&Example> = train.iter().chain(&validation).collect();
    write_shards(&teacher, pad, &manifest, &all, (&dir, recipe.batch_size), options)?;
    teacher_logits::finish(&dir)?;
    let (steps, seconds) = (manifest.shards() as u64, started.elapsed().as_secs_f64());
    write_json(&dir.join(FINISHED), &json!({"global_step": steps, "elapsed_s": seconds}))?;
    Ok(Outcome { dir, steps, seconds, was_finished: false, metrics: std::collections::BTreeMap::new() })
}

/// Writes the shards that are missing.
fn write_shards(
    teacher: &Model,
    pad: u32,
    manifest: &Manifest,
    all: &[&Example],
    (dir, batch_size): (&Path, usize),
    options: RunOptions,
) -> Result<()> {
    let RunOptions { observer, stop, .. } = options;
    observer(Event::Begin { stage: "teacher logits", total: all.len() as u64, done: 0, unit: "conversations" });
    for (number, examples) in all.chunks(SHARD).enumerate() {
        let path = shard_path(dir, number);
        let done = (number * SHARD + examples.len()) as u64;
        if !path.exists() {
            let mut encoded = Vec::with_capacity(examples.len());
            for batch in examples.chunks(batch_size.max(1)) {
                encoded.extend(encode(teacher, pad, manifest, batch)?);
            }
            teacher_logits::write_shard(&path, &encoded)?;
        }
        observer(Event::Progress { done, message: "" });
        if stop.load(SeqCst) && done < all.len() as u64 {
            let done = format!("after {done} of {} conversations", all.len());
            return Err(Error::Interrupted { run: dir.to_owned(), done });
        }
    }
    observer(Event::End);
    Ok(())
}

/// The encoded positions of each conversation of a batch.
fn encode(teacher: &Model, pad: u32, manifest: &Manifest, batch: &[&Example]) -> Result<Vec<Vec<u8>>> {
    let (states, _) = answer_states(teacher, batch, pad)?; // (n, hidden)
    let (mut encoded, mut start) = (Vec::with_capacity(batch.len()), 0);
    for example in batch {
        let positions = teacher_logits::positions(example);
        let end = start + positions;
        // The logits of a few positions are in memory at once; a conversation is one stream of bits.
        let mut all = TopKLogprobs { k: manifest.top_k, ids: Vec::new(), logprobs: Vec::new(), tail: Vec::new() };
        while start < end {
            let rows = (end - start).min(ROWS);
            let logits = teacher.output(&states.narrow(0, start, rows)?)?.narrow(1, 0, manifest.vocab)?;
            let part = TopKLogprobs::of_logits(&logits, manifest.top_k, manifest.temperature)?;
            all.ids.extend(part.ids);
            all.logprobs.extend(part.logprobs);
            all.tail.extend(part.tail);
            start += rows;
        }
        encoded.push(manifest.codec().encode(&all));
    }
    Ok(encoded)
}

/// Positions whose logits are in memory at once.
const ROWS: usize = 64;
