//! The commands `best-of-n`, `expert-iteration` and `compare-alignment`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::Common;
use super::run::Stages;
use crate::Error;
use crate::recipes::{
    BestOfNInputs, BestOfNRecipe, CompareAlignmentRecipe, ExpertIterationInputs, ExpertIterationRecipe, best_of_n,
    compare_alignment, expert_iteration,
};

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  llm-train expert-iteration --model runs/chat --reward runs/reward --data prompts.jsonl --out runs/expert"
)]
pub(super) struct ExpertIteration {
    #[command(flatten)]
    pub(super) inputs: ExpertIterationInputs,
    /// Folder to write; must not exist
    #[arg(long, value_name = "DIR")]
    pub(super) out: PathBuf,
    #[command(flatten)]
    pub(super) common: Common,
}

impl Stages<'_> {
    pub(super) fn best_of_n(
        &mut self,
        recipe: &BestOfNRecipe,
        inputs: &BestOfNInputs,
        out: &Path,
        resume: bool,
    ) -> Result<String, Error> {
        let table = best_of_n(recipe, inputs, out, self.options(resume))?;
        let (model, data) = (inputs.model.display(), out.join("best.jsonl"));
        Ok(format!("{table}\nNext: llm-train finetune --model {model} --data {} --out RUN\n", data.display()))
    }

    pub(super) fn expert_iteration(
        &mut self,
        recipe: &ExpertIterationRecipe,
        inputs: &ExpertIterationInputs,
        out: &Path,
        resume: bool,
    ) -> Result<String, Error> {
        let report = expert_iteration(recipe, inputs, out, self.options(resume))?;
        let model = out.join(format!("iteration-{}/model", recipe.iterations));
        Ok(format!("{report}\nNext: llm-infer chat --model {}\n", model.display()))
    }

    pub(super) fn compare_alignment(
        &mut self,
        recipe: &CompareAlignmentRecipe,
        out: &Path,
        resume: bool,
    ) -> Result<String, Error> {
        let report = compare_alignment(recipe, out, self.options(resume))?;
        Ok(format!("{report}\nReport: {}/report.md\n", out.display()))
    }
}
