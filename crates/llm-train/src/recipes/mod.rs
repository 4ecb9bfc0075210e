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
pub use lifecycle::{LifecycleRecipe, lifecycle, lifecycle_seeds};
pub use ppo::{Averages, PpoInputs, PpoRecipe, PpoTrainer, Score, SpecialIds, Targets, ppo};
pub use prepare::{PrepareInputs, prepare, train_tokenizer};
pub use pretrain::{PretrainInputs, PretrainRecipe, pretrain};
pub use reward::{RewardInputs, RewardModel, RewardRecipe, RewardScale, reward};

use std::path::Path;

use llm_model::Model;
use llm_tokenizer::{ChatFormat, Tokenizer};

use crate::{Error, Result};

/// The model of a folder, which must have the wanted head.
fn load_model(dir: &Path, head: llm_model::Head) -> Result<Model> {
    let model = Model::load(dir)?;
    for (name, tensor) in model.params().tensors() {
        if !llm_kernels::sum_of_squares(tensor)?.is_finite() {
            let dir = dir.display();
            return Err(Error::Input(format!("{dir}: the weight {name} is not finite, or too large to compute with")));
        }
    }
    if model.head() != head {
        let (is, wanted, dir) = (model.head(), head, dir.display());
        return Err(Error::Input(format!("{dir}: the model has the head {is:?}, this stage needs {wanted:?}")));
    }
    Ok(model)
}

/// The chat format of a folder's tokenizer; `dir` is named in errors.
fn chat_format<'a>(tokenizer: &'a Tokenizer, dir: &Path) -> Result<&'a ChatFormat> {
    let dir = dir.display();
    if !tokenizer.has_chat_template() {
        return Err(Error::Input(format!("{dir}: has no chat template; fine-tune it by `llm-train finetune` first")));
    }
    tokenizer.chat_format().map_err(|e| Error::Input(format!("{dir}: {e}")))
}
