//! The model before the first step: a new one of the recipe, or that of a Hugging Face folder.

use llm_model::{Head, Model, ModelConfig, read_config};
use llm_tokenizer::Tokenizer;

use super::{PretrainInputs, PretrainRecipe};
use crate::compat::{TokenSource, check_compatible, refuse_overwritten};
use crate::recipes::load_model;
use crate::{Error, Result};

/// The configuration of the model: that of the folder `--model`, whose tokenizer must be the one of the run, or that of the recipe with
/// the vocabulary and the special ids of the tokenizer.
pub(super) fn config(recipe: &PretrainRecipe, inputs: &PretrainInputs, tokenizer: &Tokenizer) -> Result<ModelConfig> {
    let Some(dir) = &inputs.model else { return new_config(recipe, tokenizer) };
    // The number of positions is the limit of `seq_len` in a recipe.
    let max_position_embeddings = recipe.model.max_position_embeddings;
    if recipe.model != (ModelConfig { max_position_embeddings, ..PretrainRecipe::default().model }) {
        let message = "gives the model; leave out the table [model], but for max_position_embeddings";
        return Err(Error::BadRequest(format!("--model {} {message}", dir.display())));
    }
    let config = read_config(dir)?.config;
    if dir.join("tokenizer.json").is_file() {
        let own = Tokenizer::load(dir)?;
        let model = TokenSource::Model { config: &config, tokenizer: &own, dir };
        check_compatible(&config, (tokenizer, &inputs.tokenizer), &[model])?;
    }
    Ok(config)
}

/// The configuration of a new model.
fn new_config(recipe: &PretrainRecipe, tokenizer: &Tokenizer) -> Result<ModelConfig> {
    let config = ModelConfig {
        vocab_size: tokenizer.vocab_size(),
        bos_token_id: tokenizer.bos_id(),
        eos_token_id: tokenizer.eos_id(),
        pad_token_id: tokenizer.pad_id(),
        ..recipe.model.clone()
    };
    refuse_overwritten("model", &recipe.model, &config, "the tokenizer")?;
    Ok(config)
}

/// The trainable model of this configuration.
pub(super) fn model(recipe: &PretrainRecipe, inputs: &PretrainInputs, config: ModelConfig) -> Result<Model> {
    match &inputs.model {
        None => Ok(Model::init(config, Head::LanguageModel, recipe.seed)?),
        Some(dir) => Ok(load_model(dir, Head::LanguageModel)?.trainable()?),
    }
}
