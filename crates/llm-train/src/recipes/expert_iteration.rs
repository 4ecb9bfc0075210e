//! Expert iteration: sample replies, keep the best of each prompt, fine-tune on them, and repeat with the tuned model (Anthony et al.
//! 2017, arXiv 1705.08439; for language models RAFT, Dong et al. 2023, arXiv 2304.06767, and `ReST`, Gulcehre et al. 2023, arXiv
//! 2308.08998).

use std::path::{Path, PathBuf};

use llm_model::{Head, write_atomic};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::best_of_n::BEST;
use super::{BestOfNInputs, BestOfNRecipe, FinetuneInputs, FinetuneRecipe, best_of_n, finetune, load_model};
use crate::data::one_or_several;
use crate::run::{FINISHED, RunOptions, RunSetup, Start, write_json};
use crate::{Error, Result};

/// The recipe of expert iteration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertIterationRecipe {
    /// Number of iterations.
    pub iterations: u64,
    /// How replies are sampled and scored. Its seed, plus the number of the iteration, is that of an iteration.
    pub best_of_n: BestOfNRecipe,
    /// How the model is fine-tuned on the best replies.
    pub finetune: FinetuneRecipe,
}

impl Default for ExpertIterationRecipe {
    /// The built-in recipe.
    fn default() -> Self {
        crate::recipe::default()
    }
}

/// The inputs of [`expert_iteration`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct ExpertIterationInputs {
    /// Folder of the fine-tuned model to start from; on the command line also org/name of the Hugging Face hub.
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR"))]
    pub model: PathBuf,
    /// Folders of reward models; the recipe's tables `[[best_of_n.rewards]]` say how they are used [default: the mean of their scores].
    #[cfg_attr(feature = "cli", arg(long, num_args = 1.., value_name = "DIR"))]
    #[serde(deserialize_with = "one_or_several", default)]
    pub reward: Vec<PathBuf>,
    /// Prompts in JSONL; their other columns are for the rewards.
    #[cfg_attr(feature = "cli", arg(long, value_name = "FILE"))]
    pub data: PathBuf,
}

/// Improves a model by iterations of best-of-n and fine-tuning, in the folders `iteration-N/best` and `iteration-N/model` of `out`, and
/// writes `report.md` there; returns it: the tables of best-of-n of all iterations.
#[tracing::instrument(level = "debug", skip_all, fields(run = %out.as_ref().display()))]
pub fn expert_iteration(
    recipe: &ExpertIterationRecipe,
    inputs: &ExpertIterationInputs,
    out: impl AsRef<Path>,
    options: RunOptions,
) -> Result<String> {
    let out = out.as_ref();
    let setup = match RunSetup::check(recipe, inputs, out, options)? {
        Start::Open(setup) => setup,
        Start::Finished(_) => return std::fs::read_to_string(out.join(REPORT)).map_err(Error::io(out.join(REPORT))),
    };
    load_model(&inputs.model, Head::LanguageModel)?;
    let (_, RunOptions { device, observer, stop, .. }, _lock) = setup.open_folder()?;
    let (mut model, mut report) = (inputs.model.clone(), String::new());
    for iteration in 1..=recipe.iterations {
        let dir = out.join(format!("iteration-{iteration}"));
        let (best, tuned) = (dir.join("best"), dir.join("model"));
        let sampling =
            BestOfNRecipe { seed: recipe.best_of_n.seed.wrapping_add(iteration), ..recipe.best_of_n.clone() };
        let from = BestOfNInputs { model, reward: inputs.reward.clone(), data: inputs.data.clone(), adapter: None };
        let table = best_of_n(&sampling, &from, &best, RunOptions::of_stage(&best, &device, observer, stop))?;
        let data = FinetuneInputs {
            model: from.model,
            data: vec![best.join(BEST)],
            validation: None,
            text: None,
            adapter: None,
        };
        finetune(&recipe.finetune, &data, &tuned, RunOptions::of_stage(&tuned, &device, observer, stop))?;
        report += &format!("## Iteration {iteration}\n\n{table}\n");
        model = tuned;
    }
    write_atomic(&out.join(REPORT), report.as_bytes())?;
    write_json(&out.join(FINISHED), &json!({}))?;
    Ok(report)
}

const REPORT: &str = "report.md";
