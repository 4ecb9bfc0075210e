//! The adapters of a model: create, load, activate, save and merge.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Tensor};

use crate::formats::peft;
use crate::lora::{Adapter, EMBEDDING, EmbeddingLora, Layout, Lora, LoraConfig, OUTPUT, effective_rows};
use crate::untrained::{is_untrained, typical_norm};
use crate::weight::Weight;
use crate::{Error, Head, Model, Result};

/// The adapter name that [`Model::with_lora`] uses, as in PEFT.
const DEFAULT: &str = "default";

impl Model {
    /// This model, frozen, with a new trainable adapter on top of its active adapters; the same seed gives the same bytes. The
    /// weights are shared with this model; they may be bf16 or quantised ([`Self::frozen_as`]), which is QLoRA.
    ///
    /// A score head is part of the adapter, as in PEFT.
    pub fn with_lora(&self, config: &LoraConfig, seed: u64) -> Result<Self> {
        let origin = "adapter configuration";
        let config = config.resolved(self.config(), self.head());
        let layout = Layout::new(&config, self.config(), self.head(), origin)?;
        let adapter = Adapter::init(&config, layout, (self.config(), self.params()), seed)?;
        let name = match self.adapters.active.len() {
            0 => DEFAULT.to_owned(),
            n => format!("{DEFAULT}-{n}"),
        };
        let mut model = self.clone();
        model.adapters.known.insert(name.clone(), adapter);
        let names: Vec<&str> = self.adapters.active.iter().map(String::as_str).chain([name.as_str()]).collect();
        model.use_adapters(&names)?;
        model.trainable()
    }

    /// Loads an adapter that PEFT or [`Self::save_adapter`] wrote to `dir`. It is not activated.
    pub fn load_adapter(&mut self, name: &str, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        let adapter = peft::load(dir, self)?.map(|weight| weight.to_device(&self.device()))?;
        if self.adapters.active.iter().any(|active| active == name) {
            return Err(Error::Input(format!(
                "adapter \"{name}\" is active; activate another one before replacing it"
            )));
        }
        self.adapters.known.insert(name.to_owned(), adapter);
        Ok(())
    }

    /// This model, frozen, with the adapter in `dir` instead of its uppermost active one, such as a later state of it.
    pub fn with_upper_adapter(&self, dir: impl AsRef<Path>) -> Result<Self> {
        self.check_adapter()?;
        let adapter = peft::load(dir.as_ref(), self)?.map(|weight| weight.to_device(&self.device()))?;
        let mut model = self.clone();
        let names = model.adapters.active.clone();
        model.adapters.known.extend(names.last().map(|name| (name.clone(), adapter)));
        model.use_adapters(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(model)
    }

    /// Activates the adapter of that name, or none. Frozen weights are not copied.
    pub fn use_adapter(&mut self, name: Option<&str>) -> Result<()> {
        self.use_adapters(name.as_slice())
    }

    /// Activates the adapters of these names, the lowest first. Each is an adapter of the model with the ones before it; the
    /// result is the sum of all. Frozen weights are not copied.
    pub fn use_adapters(&mut self, names: &[&str]) -> Result<()> {
        if self.adapters.unmerged.is_some() {
            return Err(Error::Input("an adapter is merged into this model; unmerge it first".to_owned()));
        }
        let mut adapters: Vec<Adapter> = Vec::new();
        for name in names {
            let adapter = self.adapters.known.get(*name).ok_or_else(|| {
                let known: Vec<&str> = self.adapters().collect();
                Error::Input(format!("there is no adapter \"{name}\"; loaded adapters: {known:?}"))
            })?;
            adapters.iter().try_for_each(|lower| adapter.check_above(lower))?;
            adapters.push(adapter.map(Weight::frozen)?);
        }
        let params = self.params().with_adapters(adapters)?;
        let mut model = self.clone();
        model.adapters.active = names.iter().map(|name| (*name).to_owned()).collect();
        *self = model.with_params(params)?;
        Ok(())
    }

    /// The names of all created and loaded adapters.
    pub fn adapters(&self) -> impl Iterator<Item = &str> {
        self.adapters.known.keys().map(String::as_str)
    }

    /// The names of the active adapters, the lowest first.
    pub fn active_adapters(&self) -> &[String] {
        &self.adapters.active
    }

    /// The configuration of the uppermost active adapter.
    pub fn adapter_config(&self) -> Option<&LoraConfig> {
        self.params().adapters().last().map(|adapter| &adapter.config)
    }

    /// Saves the active adapter to `dir` as `adapter_config.json` and `adapter_model.safetensors`; `dir` is created if
    /// needed. Several active adapters are saved as one, their sum. `base` is the folder or name from which PEFT loads the base
    /// model.
    pub fn save_adapter(&self, dir: impl AsRef<Path>, base: &str) -> Result<()> {
        self.check_adapter()?;
        let sum = Adapter::sum(self.params().adapters(), self.config(), self.head())?;
        peft::save(&sum, dir.as_ref(), base, self.config(), self.head())
    }

    /// [`Self::save_adapter`] of the uppermost active adapter alone.
    pub fn save_upper_adapter(&self, dir: impl AsRef<Path>, base: &str) -> Result<()> {
        self.check_adapter()?;
        let Some(adapter) = self.params().adapters().last() else { return Ok(()) };
        peft::save(adapter, dir.as_ref(), base, self.config(), self.head())
    }

    /// A frozen model with the active adapters merged into the weights. It can be saved with [`Self::save`] and runs as fast
    /// as a model without adapter. Merged matrices are f32.
    ///
    /// A model that ties embedding and output layer keeps them in two matrices if the adapters changed only one of them.
    pub fn merged(&self) -> Result<Self> {
        self.check_adapter()?;
        let mut params = self.params().with_adapters(Vec::new())?;
        let tied = self.head() == Head::LanguageModel && self.config().tie_word_embeddings;
        let (embedding, output) = (format!("{EMBEDDING}.weight"), format!("{OUTPUT}.weight"));
        if tied {
            params.insert(output.clone(), params.get(&embedding)?.clone());
        }
        for adapter in self.params().adapters() {
            for name in adapter.layout.adapted() {
                let weight_name = format!("{name}.weight");
                let weight = params.get(&weight_name)?.clone();
                let dense = weight.to_dense()?.detach();
                if let Some(lora) = EmbeddingLora::new(adapter, name) {
                    params.insert(weight_name, lora.merged(&dense)?);
                } else if let Some(lora) = Lora::new(adapter, name, &weight)? {
                    params.insert(weight_name, lora.applied(&dense, &weight)?.detach());
                }
            }
            for target in &adapter.layout.tokens {
                for name in [EMBEDDING, OUTPUT].iter().filter(|name| tied || **name == target.name) {
                    let weight_name = format!("{name}.weight");
                    let dense = params.get(&weight_name)?.to_dense()?.detach();
                    params.insert(weight_name, adapter.with_rows(&target.name, &dense)?);
                }
            }
            for saved in &adapter.layout.saved {
                if let Some(weight) = adapter.saved(&saved.name) {
                    params.insert(saved.name.clone(), weight.frozen()?);
                }
            }
        }
        let mut base = self.clone();
        base.adapters.active = Vec::new();
        if tied {
            let [input, out] = [&embedding, &output].map(|name| Ok::<_, Error>(params.get(name)?.to_dense()?));
            if equal(&input?, &out?)? {
                params.remove(&output);
            } else {
                base.untie();
            }
        }
        let mut merged = base.with_params(params)?;
        merged.adapters.unmerged = Some(Arc::new(self.clone()));
        Ok(merged)
    }

    /// The model before [`Self::merged`], bit for bit; the merged model keeps a reference to it.
    pub fn unmerged(&self) -> Result<Self> {
        let unmerged = self.adapters.unmerged.as_deref();
        unmerged.cloned().ok_or_else(|| Error::Input("no adapter is merged into this model".to_owned()))
    }

    fn check_adapter(&self) -> Result<()> {
        let none = "no adapter is active; load one and activate it with `use_adapter`";
        if self.params().adapters().is_empty() { Err(Error::Input(none.to_owned())) } else { Ok(()) }
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
        let rows_of = |ids: &[u32]| -> Result<Vec<Vec<f32>>> {
            let rows = effective_rows((self.config(), self.params()), OUTPUT, ids)?;
            Ok(rows.to_dtype(DType::F32)?.to_vec2()?)
        };
        let rows = rows_of(&all)?;
        let vocab = self.config().vocab_size;
        let sample: Vec<u32> = (0..vocab).step_by((vocab / 256).max(1)).map(|id| id as u32).collect();
        let norm = typical_norm(&rows_of(&sample)?);
        let untrained = |token: &u32| all.binary_search(token).is_ok_and(|at| is_untrained(&rows, at, norm));
        Ok(tokens.iter().copied().filter(untrained).collect())
    }
}

/// Whether two tensors have the same values.
fn equal(a: &Tensor, b: &Tensor) -> Result<bool> {
    Ok(a.dims() == b.dims() && (a - b)?.abs()?.flatten_all()?.max(0)?.to_dtype(DType::F64)?.to_scalar::<f64>()? == 0.)
}
