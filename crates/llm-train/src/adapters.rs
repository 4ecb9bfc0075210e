//! What a stage trains of its model: all weights, a new adapter, an adapter of an earlier stage, or an adapter on an adapter.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use llm_model::{LoraConfig, Model};
use llm_tokenizer::Tokenizer;
use rand::RngExt;
use serde_json::Value;

use crate::optim::{Learner, OptimizerConfig};
use crate::run::{Record, RunSetup, WriteModel, rng};
use crate::{Error, Result};

/// The adapters of a stage. Without any the stage trains all weights.
#[derive(Debug, Clone)]
pub(crate) struct Adapters<'a> {
    /// Folder of the model, for the files of the adapter.
    pub model: &'a Path,
    /// A new adapter to train.
    pub lora: Option<LoraConfig>,
    /// Folder of an adapter of an earlier stage: without `lora` its training goes on, with `lora` it is frozen below the new one.
    pub adapter: Option<&'a Path>,
    /// The seed of the initial weights.
    pub seed: u64,
}

/// The folder in a result or checkpoint with the trained adapter alone, if it is on top of another one.
const UPPER: &str = "trained_adapter";

const LOWER: &str = "lower";

impl<'a> Adapters<'a> {
    /// The adapters that a recipe and the inputs of its stage name.
    pub fn new(model: &'a Path, lora: Option<&LoraConfig>, adapter: Option<&'a PathBuf>, seed: u64) -> Self {
        Self { model, lora: lora.cloned(), adapter: adapter.map(PathBuf::as_path), seed }
    }

    /// The trainable model at the start of the run; `base` is frozen below adapters, and its weights are shared.
    pub fn start(&self, base: &Model) -> Result<Model> {
        let below = self.below(base)?;
        Ok(match &self.lora {
            Some(lora) => below.with_lora(lora, self.seed)?,
            None => below.trainable()?,
        })
    }

    /// The frozen model at the start of the run, for a reference: a new adapter changes nothing yet, so the first KL divergence from it is
    /// exactly 0.
    pub fn reference(&self, base: &Model) -> Result<Model> {
        if self.is_empty() { Ok(base.frozen()?) } else { Ok(self.start(base)?.frozen()?) }
    }

    /// `base` with the adapter of an earlier stage, if there is one.
    pub fn below(&self, base: &Model) -> Result<Model> {
        let mut model = base.clone();
        if let Some(dir) = self.adapter {
            model.load_adapter(LOWER, dir)?;
            model.use_adapter(Some(LOWER))?;
        }
        Ok(model)
    }

    /// A learner at the start of the run, or of the setup's checkpoint.
    pub fn learner(&self, base: &Model, setup: &RunSetup, config: &OptimizerConfig) -> Result<Learner> {
        let Some(checkpoint) = setup.checkpoint() else {
            return Learner::new(self.start(base)?.to_device(setup.device())?, config);
        };
        let start = if self.is_empty() { base.clone() } else { self.start(base)? };
        let optimizer = checkpoint.dir.join("trainer/optimizer.safetensors");
        restored(&start.to_device(setup.device())?, &checkpoint.dir, &optimizer, config)
    }

    /// Whether the stage trains all weights.
    pub fn is_empty(&self) -> bool {
        self.lora.is_none() && self.adapter.is_none()
    }

    /// [`Self::save`] as a function for any thread.
    pub fn writer(&self, tokenizer: &Tokenizer) -> WriteModel {
        let (base, tokenizer) = (self.model.display().to_string(), tokenizer.clone());
        Arc::new(move |model, dir| {
            tokenizer.save(dir)?;
            save(model, dir, &base)
        })
    }

    /// Writes the model, or the sum of its adapters and the trained one alone, with the tokenizer.
    pub fn save(&self, model: &Model, tokenizer: &Tokenizer, dir: &Path) -> Result<()> {
        tokenizer.save(dir)?;
        save(model, dir, &self.model.display().to_string())
    }
}

/// Writes a model, or its adapters over the model in the folder `base`.
pub(crate) fn save(model: &Model, dir: &Path, base: &str) -> Result<()> {
    match model.active_adapters() {
        [] => return Ok(model.save(dir)?),
        [_] => {}
        [_, ..] => model.save_upper_adapter(dir.join(UPPER), base)?,
    }
    model.save_generation(dir)?;
    Ok(model.save_adapter(dir, base)?)
}

/// A learner of the weights or the adapter that [`save`] wrote to `dir`; `start` is the model at the start of the run.
pub(crate) fn restored(start: &Model, dir: &Path, optimizer: &Path, config: &OptimizerConfig) -> Result<Learner> {
    let model = match start.active_adapters() {
        [] => Model::load(dir)?.to_device(&start.device())?,
        [_] => start.with_upper_adapter(dir)?,
        [_, ..] => start.with_upper_adapter(dir.join(UPPER))?,
    };
    let mut learner = Learner::new(model.trainable()?, config)?;
    learner.load_optimizer(optimizer)?;
    Ok(learner)
}

/// The folder with the tokenizer: that of the adapter if it has one, as its chat template may be newer.
pub(crate) fn tokenizer_folder<'a>(model: &'a Path, adapter: Option<&'a PathBuf>) -> &'a Path {
    adapter.map(PathBuf::as_path).filter(|dir| dir.join("tokenizer.json").is_file()).unwrap_or(model)
}

/// The folder of the model below the adapter in `dir`: what its `adapter_config.json` says, or the input of its run.
pub(crate) fn base_of_adapter(dir: &Path) -> Result<PathBuf> {
    let path = dir.join("adapter_config.json");
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let config: Value = serde_json::from_str(&text).map_err(|e| Error::BadFile(format!("{}: {e}", path.display())))?;
    let base = config.get("base_model_name_or_path").and_then(Value::as_str).map(PathBuf::from);
    // The path is relative to the folder in which the run was started; the run also knows the way from its own folder.
    let of_run = || Record::read(dir).ok().and_then(|record| record.inputs.get("model")?.find("model", dir).ok());
    base.clone().filter(|base| base.is_dir()).or_else(of_run).ok_or_else(|| {
        let wrong = match base {
            None => "is missing; it must be the folder of the model".to_owned(),
            Some(base) => format!("is \"{}\": no such folder; write the folder of the model there", base.display()),
        };
        Error::BadFile(format!("{}: \"base_model_name_or_path\" {wrong}", path.display()))
    })
}

/// The seed of the dropout of a batch with this number.
pub(crate) fn dropout_seed(seed: u64, batch: u64) -> u64 {
    rng(seed, 8, batch).random()
}
