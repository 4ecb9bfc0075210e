//! The adapters of a model: create, load, activate, save and merge.

use std::path::Path;
use std::sync::Arc;

use candle_core::DType;

use crate::formats::peft;
use crate::lora::{Adapter, EMBEDDING, Lora, LoraConfig, OUTPUT, rows_of};
use crate::untrained::{is_untrained, typical_norm};
use crate::weight::Weight;
use crate::{Error, Head, Model, Result};

/// The adapter name that [`Model::with_lora`] uses, as in PEFT.
const DEFAULT: &str = "default";

impl Model {
    /// This model, frozen, with a new trainable adapter; the same seed gives the same bytes. The weights are shared with
    /// this model; they may be bf16 or quantised ([`Self::frozen_as`]), which is QLoRA.
    pub fn with_lora(&self, config: &LoraConfig, seed: u64) -> Result<Self> {
        let targets = config.targets(self.config(), self.head(), "adapter configuration")?;
        let tokens = config.token_targets(self.config(), "adapter configuration")?;
        let adapter = Adapter::init(config, (&targets, &tokens), self.params(), seed)?;
        let mut model = self.clone();
        model.adapters.known.insert(DEFAULT.to_owned(), adapter);
        model.use_adapter(Some(DEFAULT))?;
        model.trainable()
    }

    /// Loads an adapter that PEFT or [`Self::save_adapter`] wrote to `dir`. It is not activated.
    pub fn load_adapter(&mut self, name: &str, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        let adapter = peft::load(dir, self.config(), self.head())?.map(|weight| weight.to_device(&self.device()))?;
        if self.active_adapter() == Some(name) {
            return Err(Error::Input(format!(
                "adapter \"{name}\" is active; activate another one before replacing it"
            )));
        }
        self.adapters.known.insert(name.to_owned(), adapter);
        Ok(())
    }

    /// Activates the adapter of that name, or none. Frozen weights are not copied.
    pub fn use_adapter(&mut self, name: Option<&str>) -> Result<()> {
        if self.adapters.unmerged.is_some() {
            return Err(Error::Input("an adapter is merged into this model; unmerge it first".to_owned()));
        }
        let adapter = match name {
            None => None,
            Some(name) => Some(self.adapters.known.get(name).ok_or_else(|| {
                let known: Vec<&str> = self.adapters().collect();
                Error::Input(format!("there is no adapter \"{name}\"; loaded adapters: {known:?}"))
            })?),
        };
        let params = self.params().with_adapter(adapter.map(|adapter| adapter.map(Weight::frozen)).transpose()?)?;
        let mut model = self.clone();
        model.adapters.active = name.map(str::to_owned);
        *self = model.with_params(params)?;
        Ok(())
    }

    /// The names of all created and loaded adapters.
    pub fn adapters(&self) -> impl Iterator<Item = &str> {
        self.adapters.known.keys().map(String::as_str)
    }

    /// The name of the active adapter.
    pub fn active_adapter(&self) -> Option<&str> {
        self.adapters.active.as_deref()
    }

    /// Saves the active adapter to `dir` as `adapter_config.json` and `adapter_model.safetensors`; `dir` is created if
    /// needed. `base` is the folder or name from which PEFT loads the base model.
    pub fn save_adapter(&self, dir: impl AsRef<Path>, base: &str) -> Result<()> {
        let dir = dir.as_ref();
        peft::save(self.adapter()?, dir, base, self.config(), self.head())
    }

    /// A frozen model with the active adapter merged into the weights. It can be saved with [`Self::save`] and runs as fast
    /// as a model without adapter. Merged matrices are f32.
    pub fn merged(&self) -> Result<Self> {
        let adapter = self.adapter()?;
        let mut params = self.params().with_adapter(None)?;
        for name in adapter.weights.keys().filter_map(|name| name.strip_suffix(".lora_A.weight")) {
            let weight = self.params().get(&format!("{name}.weight"))?;
            if let Some(lora) = Lora::new(adapter, name, weight)? {
                params.insert(format!("{name}.weight"), lora.merged(weight)?);
            }
        }
        for name in [EMBEDDING, OUTPUT] {
            if let Some(weight) = adapter.merged_rows(self.config(), self.params(), name)? {
                params.insert(format!("{name}.weight"), weight);
            }
        }
        let mut base = self.clone();
        base.adapters.active = None;
        let mut merged = base.with_params(params)?;
        merged.adapters.unmerged = Some(Arc::new(self.clone()));
        Ok(merged)
    }

    /// The model before [`Self::merged`], bit for bit; the merged model keeps a reference to it.
    pub fn unmerged(&self) -> Result<Self> {
        let unmerged = self.adapters.unmerged.as_deref();
        unmerged.cloned().ok_or_else(|| Error::Input("no adapter is merged into this model".to_owned()))
    }

    fn adapter(&self) -> Result<&Adapter> {
        let none = "no adapter is active; load one and activate it with `use_adapter`";
        self.params().adapter().ok_or_else(|| Error::Input(none.to_owned()))
    }

    /// The subset of `tokens` that the model was probably never trained on, judged by the rows of its output layer.
    ///
    /// Rows of tokens that are never a target all get the same gradient direction, so they become nearly equal. A token is
    /// returned if its row is much shorter than others, or nearly equal to the row of another token of `tokens` or `among` (for
    /// example all special tokens) and as near to such rows as they are to each other. Rows of trained tokens and freshly
    /// initialised rows differ.
    pub fn untrained_tokens(&self, tokens: &[u32], among: &[u32]) -> Result<Vec<u32>> {
        if self.head() != Head::LanguageModel || tokens.is_empty() {
            return Ok(Vec::new());
        }
        let mut all: Vec<u32> = tokens.iter().chain(among).copied().collect();
        all.sort_unstable();
        all.dedup();
        all.retain(|&id| (id as usize) < self.config().vocab_size);
        let rows = rows_of(self.output_matrix(), &all)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        let vocab = self.config().vocab_size;
        let sample: Vec<u32> = (0..vocab).step_by((vocab / 256).max(1)).map(|id| id as u32).collect();
        let sample = rows_of(self.output_matrix(), &sample)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        let norm = typical_norm(&sample);
        let untrained = |token: &u32| all.binary_search(token).is_ok_and(|at| is_untrained(&rows, at, norm));
        Ok(tokens.iter().copied().filter(untrained).collect())
    }
}
