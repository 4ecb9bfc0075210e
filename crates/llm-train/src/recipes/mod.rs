//! Training recipes, one file each. Each reads from top to bottom like the pseudocode of its paper.

mod answers;
mod compare_methods;
mod distill;
mod finetune;
mod lifecycle;
mod ppo;
mod prepare;
mod pretrain;
mod reward;
pub mod scaling;
mod tokenizer;

pub use compare_methods::{CompareMethodsRecipe, compare_methods};
pub use distill::{DistillInputs, DistillRecipe, distill};
pub use finetune::{FinetuneInputs, FinetuneRecipe, finetune};
pub(crate) use finetune::{load as load_finetune, train_on_answers};
pub use lifecycle::{LifecycleRecipe, PipelineOutcome, lifecycle, lifecycle_seeds};
pub use ppo::{PpoInputs, PpoRecipe, PpoTrainer, RunningMeans, Score, SpecialIds, Targets, ppo};
pub use prepare::{PrepareInputs, prepare};
pub use pretrain::{PretrainInputs, PretrainRecipe, pretrain};
pub use reward::{RewardInputs, RewardModel, RewardRecipe, RewardScale, reward};
pub use scaling::{ScalingRecipe, scaling};
pub use tokenizer::train_tokenizer;

use std::path::Path;
use std::sync::Arc;

use llm_model::Model;
use llm_tokenizer::{ChatFormat, TemplateOptions, Tokenizer};

use crate::run::WriteModel;
use crate::{Error, Result};

/// Loads the model of a folder; it is an error if it has another head or a weight that is not finite.
pub(crate) fn load_model(dir: &Path, head: llm_model::Head) -> Result<Model> {
    let model = Model::load(dir)?;
    for (name, tensor) in &model.params().tensors() {
        if !crate::optim::squares_are_finite(tensor)? {
            let dir = dir.display();
            return Err(Error::BadFile(format!("{dir}: the weight {name} is not finite, or too large")));
        }
    }
    if model.head() != head {
        let (found, needed, dir) = (kind(model.head()), kind(head), dir.display());
        return Err(Error::Unsupported(format!("{dir}: the model is {found}; this stage needs {needed}")));
    }
    Ok(model)
}

/// The tokenizer of a folder, for training: a chat template that writes the date gets always the same one, so that a resumed run has
/// the same text.
fn load_tokenizer(dir: &Path) -> Result<Tokenizer> {
    let options = TemplateOptions { date: Some(FinetuneRecipe::default().date), ..TemplateOptions::default() };
    Ok(Tokenizer::load(dir)?.with_template_options(options)?)
}

/// A model with this head, in words.
fn kind(head: llm_model::Head) -> &'static str {
    match head {
        llm_model::Head::LanguageModel => "a language model",
        llm_model::Head::Sequence => "a reward model (sequence classification)",
        llm_model::Head::Token => "a critic (token classification)",
    }
}

/// A function that writes a model and this tokenizer into a folder.
fn writer(tokenizer: &Tokenizer) -> WriteModel {
    let tokenizer = tokenizer.clone();
    Arc::new(move |model, dir| {
        tokenizer.save(dir)?;
        Ok(model.save(dir)?)
    })
}

/// The chat format of a tokenizer. Errors name its folder `dir`.
fn chat_format<'a>(tokenizer: &'a Tokenizer, dir: &Path) -> Result<&'a ChatFormat> {
    let dir = dir.display();
    if !tokenizer.has_chat_template() {
        return Err(Error::Unsupported(format!("{dir}: no chat template; run `llm-train finetune` on it first")));
    }
    tokenizer.chat_format().map_err(|e| Error::BadFile(format!("{dir}: {e}")))
}

#[cfg(test)]
mod tests {
    use llm_model::{Head, ModelConfig};

    use super::*;

    #[test]
    fn a_model_with_another_head_is_refused_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let config = ModelConfig { vocab_size: 10, hidden_size: 48, num_hidden_layers: 1, ..ModelConfig::default() };
        Model::init(config, Head::Sequence, 1).unwrap().save(dir.path()).unwrap();
        let message = load_model(dir.path(), Head::LanguageModel).unwrap_err().to_string();
        let expected = ": the model is a reward model (sequence classification); this stage needs a language model";
        assert!(message.ends_with(expected), "{message}");
    }
}
