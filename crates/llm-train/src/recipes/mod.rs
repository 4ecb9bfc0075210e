//! Training recipes, one file each. Each reads from top to bottom like the pseudocode of its paper.

mod answers;
mod best_of_n;
mod compare_alignment;
mod compare_methods;
mod distill;
mod dpo;
mod expert_iteration;
mod finetune;
mod grpo;
mod kto;
mod lifecycle;
mod policy;
mod ppo;
mod prepare;
mod pretrain;
mod reward;
pub mod scaling;
mod teacher_logits;
mod tokenizer;

pub use best_of_n::{BestOfNInputs, BestOfNRecipe, best_of_n};
pub use compare_alignment::{CompareAlignmentRecipe, compare_alignment};
pub use compare_methods::{CompareMethodsRecipe, compare_methods};
pub use distill::{
    DistillInputs, DistillRecipe, DistillReport, DistillRow, DivergenceKind, MeasureDecode, distill, distill_report,
    measure_decode,
};
pub use dpo::{DpoInputs, DpoRecipe, PairLoss, dpo};
pub use expert_iteration::{ExpertIterationInputs, ExpertIterationRecipe, expert_iteration};
pub use finetune::{FinetuneInputs, FinetuneRecipe, finetune};
pub(crate) use finetune::{load as load_finetune, train_on_answers};
pub use grpo::{Episode, GrpoInputs, GrpoRecipe, GrpoTrainer, grpo};
pub use kto::{KtoInputs, KtoRecipe, kto};
pub use lifecycle::{LifecycleRecipe, PipelineOutcome, lifecycle, lifecycle_seeds};
pub use ppo::{PpoInputs, PpoRecipe, PpoTrainer, RunningMeans, SpecialIds, Targets, ppo};
pub use prepare::{PrepareInputs, prepare};
pub use pretrain::{PretrainInputs, PretrainRecipe, pretrain};
pub use reward::{RankingLoss, RewardInputs, RewardRecipe, reward};
pub use scaling::{ScalingRecipe, scaling};
pub use teacher_logits::{TeacherLogitsInputs, TeacherLogitsRecipe, teacher_logits};
pub use tokenizer::train_tokenizer;

use std::path::Path;
use std::sync::Arc;

use llm_tokenizer::{TemplateOptions, Tokenizer};

use crate::Result;
pub(crate) use crate::load::{chat_format, kind, load_model};
pub use crate::rewards::{RewardModel, RewardScale};
use crate::run::WriteModel;

/// The tokenizer of a folder, for training: a chat template that writes the date gets always the same one, so that a resumed run has
/// the same text.
pub(crate) fn load_tokenizer(dir: &Path) -> Result<Tokenizer> {
    let options = TemplateOptions { date: Some(FinetuneRecipe::default().date), ..TemplateOptions::default() };
    Ok(Tokenizer::load(dir)?.with_template_options(options)?)
}

/// A function that writes a model and this tokenizer into a folder.
fn writer(tokenizer: &Tokenizer) -> WriteModel {
    let tokenizer = tokenizer.clone();
    Arc::new(move |model, dir| {
        tokenizer.save(dir)?;
        Ok(model.save(dir)?)
    })
}
