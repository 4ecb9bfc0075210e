//! The adapters of a model: made, read, chosen, written, and merged into its weights.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::lora::{Adapter, Lora, LoraConfig};
use crate::token_rows::{EMBEDDING, OUTPUT};
use crate::{Error, Model, Result, peft};

/// What [`Model::with_lora`] calls its adapter, as PEFT does.
const DEFAULT: &str = "default";

/// The adapters of a model, by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Adapters {
    known: BTreeMap<String, Adapter>,
    /// The one in use: the parameters hold it too.
    active: Option<String>,
    /// What this model was before its adapter was merged.
    unmerged: Option<Arc<Model>>,
}

impl Adapters {
    /// The same, where the numbers of the one in use are these.
    pub fn now_with(&self, adapter: Option<&Adapter>) -> Self {
        let mut now = Self { unmerged: None, ..self.clone() };
        if let (Some(name), Some(adapter)) = (&now.active, adapter) {
            now.known.insert(name.clone(), adapter.clone());
        }
        now
    }
}

impl Model {
    /// This model, frozen, with a fresh adapter that trains; the same seed gives the same bytes. The weights are shared with this
    /// model, and may be in bf16 or in blocks ([`Self::frozen_as`]): QLoRA.
    pub fn with_lora(&self, config: &LoraConfig, seed: u64) -> Result<Self> {
        let targets = config.targets(self.config(), self.head(), "adapter configuration")?;
        let tokens = config.token_targets(self.config(), "adapter configuration")?;
        let adapter = Adapter::fresh(config, (&targets, &tokens), self.params(), seed)?;
        let mut model = self.clone();
        model.adapters.known.insert(DEFAULT.to_owned(), adapter);
        model.use_adapter(Some(DEFAULT))?;
        model.trainable()
    }

    /// Reads an adapter that PEFT, or [`Self::save_adapter`], wrote into `dir`. It is not yet used.
    pub fn load_adapter(&mut self, name: &str, dir: &Path) -> Result<()> {
        let adapter = peft::load(dir, self.config(), self.head())?;
        if self.active_adapter() == Some(name) {
            return Err(Error::Input(format!(
                "the adapter \"{name}\" is in use; choose another before you replace it"
            )));
        }
        self.adapters.known.insert(name.to_owned(), adapter);
        Ok(())
    }

    /// Uses the adapter of that name from now on, or none. No weight is read or copied that does not train.
    pub fn use_adapter(&mut self, name: Option<&str>) -> Result<()> {
        if self.adapters.unmerged.is_some() {
            return Err(Error::Input("an adapter is merged into this model; unmerge it before".to_owned()));
        }
        let adapter = match name {
            None => None,
            Some(name) => Some(self.adapters.known.get(name).ok_or_else(|| {
                let known: Vec<&str> = self.adapters().collect();
                Error::Input(format!("there is no adapter \"{name}\"; loaded are {known:?}"))
            })?),
        };
        let params = self.params().with_adapter(adapter.map(Adapter::frozen).transpose()?)?;
        let mut model = self.clone();
        model.adapters.active = name.map(str::to_owned);
        *self = model.with_params(params)?;
        Ok(())
    }

    /// The names of the adapters that were made or read.
    pub fn adapters(&self) -> impl Iterator<Item = &str> {
        self.adapters.known.keys().map(String::as_str)
    }

    /// The name of the adapter in use.
    pub fn active_adapter(&self) -> Option<&str> {
        self.adapters.active.as_deref()
    }

    /// Writes `adapter_config.json` and `adapter_model.safetensors` of the adapter in use into `dir`, which is made if need be;
    /// `base` is what PEFT loads this model by: a folder or a name.
    pub fn save_adapter(&self, dir: &Path, base: &str) -> Result<()> {
        peft::save(self.adapter()?, dir, base, self.config(), self.head())
    }

    /// A frozen model whose weights are those that the adapter in use makes of this one's: [`Self::save`] takes it, and it is
    /// as fast as without an adapter. Adapted matrices are in f32.
    pub fn merged(&self) -> Result<Self> {
        let adapter = self.adapter()?;
        let mut params = self.params().with_adapter(None)?;
        for name in adapter.tensors.keys().filter_map(|name| name.strip_suffix(".lora_A.weight")) {
            let weight = self.params().matrix(&format!("{name}.weight"))?;
            if let Some(lora) = Lora::new(adapter, name, &weight)? {
                params.replace(format!("{name}.weight"), lora.merged(&weight)?);
            }
        }
        for name in [EMBEDDING, OUTPUT] {
            if let Some(weight) = adapter.merged_rows(self.config(), self.params(), name)? {
                params.replace(format!("{name}.weight"), weight);
            }
        }
        let mut base = self.clone();
        base.adapters.active = None;
        let mut merged = base.with_params(params)?;
        merged.adapters.unmerged = Some(Arc::new(self.clone()));
        Ok(merged)
    }

    /// The model that [`Self::merged`] was called on, with its bits: they are kept beside the merged ones.
    pub fn unmerged(&self) -> Result<Self> {
        let unmerged = self.adapters.unmerged.as_deref();
        unmerged.cloned().ok_or_else(|| Error::Input("no adapter is merged into this model".to_owned()))
    }

    fn adapter(&self) -> Result<&Adapter> {
        let none = "no adapter is in use; load one and choose it by `use_adapter`";
        self.params().adapter().ok_or_else(|| Error::Input(none.to_owned()))
    }
}
