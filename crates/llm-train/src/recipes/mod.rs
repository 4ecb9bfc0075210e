//! One file for each way in which a model learns; each reads from top to bottom like the paper's pseudocode.

mod distill;
mod finetune;
mod lifecycle;
mod ppo;
mod prepare;
mod pretrain;
mod reward;

pub use distill::{DistillInputs, DistillRecipe, distill};
pub use finetune::{BaseDtype, FinetuneInputs, FinetuneRecipe, finetune};
pub use lifecycle::{LifecycleRecipe, lifecycle};
pub use ppo::{PpoInputs, PpoRecipe, PpoTrainer, Score, ppo};
pub use prepare::{PrepareInputs, prepare, train_tokenizer};
pub use pretrain::{PretrainInputs, PretrainRecipe, pretrain};
pub use reward::{RewardInputs, RewardModel, RewardRecipe, reward};

use std::path::Path;

use llm_model::Model;
use llm_tokenizer::Tokenizer;

use crate::{Error, Result};

/// The model of a folder, which must have the wanted head.
fn load_model(dir: &Path, head: llm_model::Head) -> Result<Model> {
    let model = Model::load(dir)?;
    if model.head() != head {
        let (is, wanted, dir) = (model.head(), head, dir.display());
        return Err(Error::Input(format!("{dir}: the model has the head {is:?}, this stage needs {wanted:?}")));
    }
    Ok(model)
}

/// The id that fills up short rows. It must not be the id that ends a reply, or ends could not be told from padding.
fn pad_id(tokenizer: &Tokenizer, dir: &Path) -> Result<u32> {
    match tokenizer.pad_id() {
        Some(pad) if Some(pad) != tokenizer.end_of_turn_id() => Ok(pad),
        _ => Err(Error::Input(format!(
            "{}/tokenizer_config.json: \"pad_token\" must be set and differ from the token that ends a turn",
            dir.display()
        ))),
    }
}
