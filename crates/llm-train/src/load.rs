//! Loads the model of a folder for a stage, and the chat format of its tokenizer.

use std::path::Path;

use llm_model::Model;
use llm_tokenizer::{ChatFormat, Tokenizer};

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

/// A model with this head, in words.
pub(crate) fn kind(head: llm_model::Head) -> &'static str {
    match head {
        llm_model::Head::LanguageModel => "a language model",
        llm_model::Head::Sequence | llm_model::Head::Scores(_) => "a reward model (sequence classification)",
        llm_model::Head::Token => "a critic (token classification)",
    }
}

/// The chat format of a tokenizer. Errors name its folder `dir`.
pub(crate) fn chat_format<'a>(tokenizer: &'a Tokenizer, dir: &Path) -> Result<&'a ChatFormat> {
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
