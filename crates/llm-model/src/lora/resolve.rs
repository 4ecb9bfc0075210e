//! The names of a configuration that depend on the model: what "all-linear" selects, and its heads.

use super::config::{ALL_LINEAR, LoraConfig, is_named};
use super::modules::{Module, modules};
use super::tokens::{EMBEDDING, OUTPUT, TokenIndices};
use crate::formats::families;
use crate::{Head, ModelConfig};

impl LoraConfig {
    /// Whether the whole embedding of a model is trained or adapted.
    pub fn trains_embeddings(&self, model: &ModelConfig) -> bool {
        modules(model, Head::LanguageModel).iter().filter(|module| module.parts[0].name == EMBEDDING).any(|module| {
            self.target_modules.iter().any(|wanted| is_named(&module.name, wanted))
                || self.modules_to_save.iter().any(|wanted| module.name.ends_with(wanted.as_str()))
        })
    }

    /// Removes the output layer, which a model with a score head does not have.
    fn remove_output_layer(&mut self, model: &ModelConfig) {
        let output = families::location(model, Head::LanguageModel, OUTPUT).0;
        let other = |name: &String| !is_named(&output, name);
        self.target_modules.retain(other);
        self.modules_to_save.retain(other);
        if let Some(TokenIndices::Modules(modules)) = &mut self.trainable_token_indices {
            modules.retain(|name, _| other(name));
        }
    }

    /// The same configuration with the names that PEFT resolves "all-linear" to, and with the score head of the model in
    /// `modules_to_save`.
    pub(crate) fn resolved(&self, model: &ModelConfig, head: Head) -> Self {
        let mut config = self.clone();
        let modules = modules(model, head);
        if head != Head::LanguageModel {
            config.remove_output_layer(model);
        }
        if config.target_modules.iter().any(|wanted| wanted == ALL_LINEAR) {
            config.target_modules.retain(|wanted| wanted != ALL_LINEAR);
            let selected: Vec<&Module> = modules.iter().filter(|module| module.is_linear_of_block()).collect();
            let mut names: Vec<&str> = selected.iter().filter_map(|module| module.name.rsplit('.').next()).collect();
            names.sort_unstable();
            names.dedup();
            let named = |module: &&Module| names.iter().any(|name| is_named(&module.name, name));
            if modules.iter().filter(named).count() == selected.len() {
                config.target_modules.extend(names.into_iter().map(str::to_owned));
            } else {
                config.target_modules.extend(selected.iter().map(|module| module.name.clone()));
            }
            if model.experts.is_some() {
                let all = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj", "mlp.gate.weight"];
                config.target_parameters = all.map(str::to_owned).to_vec();
            }
        }
        if head != Head::LanguageModel
            && let Some(score) = modules.iter().rev().find(|module| module.is_head())
            && !config.target_modules.iter().any(|wanted| is_named(&score.name, wanted))
            && !config.modules_to_save.iter().any(|wanted| score.name.ends_with(wanted.as_str()))
        {
            config.modules_to_save.push(score.name.clone());
        }
        config
    }
}
