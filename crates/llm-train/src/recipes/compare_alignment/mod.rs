//! Alignment methods compared on the synthetic dataset: PPO with several KL coefficients, GRPO, RLOO, DPO and best-of-n, over several
//! seeds. Each is measured by its KL divergence from the fine-tuned model, the score of the reward model, and the true utility, which
//! no method sees (Gao et al. 2023, arXiv 2210.10760).

mod legs;
mod measure;
mod report;

use std::path::Path;

use llm_model::write_atomic;
use llm_synthetic::World;
use serde::{Deserialize, Serialize};
use serde_json::json;

use self::legs::Legs;
use self::measure::{Measuring, Points};
use super::lifecycle::{Folders, LifecycleRecipe, reseeded, reward_stages};
use super::{DpoInputs, DpoRecipe, GrpoInputs, GrpoRecipe, PpoInputs, PpoRecipe, dpo, grpo, ppo};
use crate::run::{FINISHED, RunOptions, RunSetup, StageTimes, Start, write_json};
use crate::{Error, Result};

/// The recipe of the comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompareAlignmentRecipe {
    /// Number of seeds: those of the pipeline, and the following ones.
    pub seeds: u64,
    /// The KL coefficients of PPO; each is a run.
    pub kl_coefs: Vec<f64>,
    /// Best-of-n is measured for n = 1, 2, 4, … up to this.
    pub best_of: usize,
    /// Questions on held-out themes to measure a model on.
    pub questions: usize,
    /// The models that alignment starts from, and PPO.
    pub pipeline: LifecycleRecipe,
    /// GRPO.
    pub grpo: GrpoRecipe,
    /// RLOO.
    pub rloo: GrpoRecipe,
    /// DPO, on the rankings of the reward model.
    pub dpo: DpoRecipe,
}

impl Default for CompareAlignmentRecipe {
    /// The built-in recipe.
    fn default() -> Self {
        crate::recipe::default()
    }
}

/// A training run of the comparison.
enum Method {
    Ppo(PpoRecipe),
    Grpo(GrpoRecipe),
    Dpo(DpoRecipe),
}

const REPORT: &str = "report.md";

/// Runs all methods for all seeds in folders `seed-N` of `out`; writes `report.md` and `frontier.svg` there and returns the report.
#[tracing::instrument(level = "debug", skip_all, fields(run = %out.as_ref().display()))]
pub fn compare_alignment(
    recipe: &CompareAlignmentRecipe,
    out: impl AsRef<Path>,
    options: RunOptions,
) -> Result<String> {
    let out = out.as_ref();
    let setup = match RunSetup::check(recipe, &(), out, options)? {
        Start::Open(setup) => setup,
        Start::Finished(_) => return std::fs::read_to_string(out.join(REPORT)).map_err(Error::io(out.join(REPORT))),
    };
    let (_, RunOptions { device, observer, stop, .. }, _lock) = setup.open_folder()?;
    let mut seeds = Vec::new();
    for number in 0..recipe.seeds {
        let recipe = of_seed(recipe, number);
        let dir = out.join(format!("seed-{}", recipe.pipeline.world.seed));
        let options = RunOptions { resume: true, device: device.clone(), observer: &mut *observer, stop };
        seeds.push(run_seed(&recipe, &dir, options)?);
    }
    let report = report::write(recipe, &seeds, out)?;
    write_atomic(&out.join(REPORT), report.as_bytes())?;
    write_json(&out.join(FINISHED), &json!({}))?;
    Ok(report)
}

/// The recipe with `by` added to all seeds.
fn of_seed(recipe: &CompareAlignmentRecipe, by: u64) -> CompareAlignmentRecipe {
    let mut recipe = CompareAlignmentRecipe { pipeline: reseeded(&recipe.pipeline, by), ..recipe.clone() };
    for seed in [&mut recipe.grpo.seed, &mut recipe.rloo.seed, &mut recipe.dpo.seed] {
        *seed = seed.wrapping_add(by);
    }
    recipe
}

/// Trains and measures all models of one seed, except what is there.
fn run_seed(recipe: &CompareAlignmentRecipe, dir: &Path, options: RunOptions) -> Result<Points> {
    let RunOptions { device, observer, stop, .. } = options;
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let world = World::new(recipe.pipeline.world.clone());
    let mut times = StageTimes::open(&dir.join("times.json"))?;
    let options = RunOptions { resume: true, device: device.clone(), observer: &mut *observer, stop };
    let from = Folders::of(dir);
    reward_stages(&recipe.pipeline, &world, &from, &mut times, options)?;
    let measuring = Measuring::load(recipe, &world, &from, &device)?;
    let mut points = Points::open(&dir.join("points.json"))?;
    if points.of(START).is_empty() {
        points.add(START, [measuring.measure(&from.instruct)?])?;
    }
    if points.of(BEST_OF_N).is_empty() {
        points.add(BEST_OF_N, measuring.best_of_n(recipe.best_of)?)?;
    }
    for (name, method) in methods(recipe) {
        let run = dir.join(folder(&name));
        let legs = Legs { run: &run, steps: method.updates(), device: &device, stop };
        let stage = |options: RunOptions| method.run(&from, &run, options);
        let known = points.of(&name).len();
        legs.run(known, observer, stage, |model| points.add(&name, [measuring.measure(model)?]))?;
    }
    Ok(points)
}

/// The name of the fine-tuned model and of best-of-n in tables.
const START: &str = "fine-tuned model";
const BEST_OF_N: &str = "best-of-n";

/// The training runs by name.
fn methods(recipe: &CompareAlignmentRecipe) -> Vec<(String, Method)> {
    let of_coefficient = |&kl_coef: &f64| {
        let ppo = PpoRecipe { kl_coef, ..recipe.pipeline.ppo.clone() };
        (ppo_name(kl_coef), Method::Ppo(ppo))
    };
    let mut all: Vec<_> = recipe.kl_coefs.iter().map(of_coefficient).collect();
    all.push(("GRPO".to_owned(), Method::Grpo(recipe.grpo.clone())));
    all.push(("RLOO".to_owned(), Method::Grpo(recipe.rloo.clone())));
    all.push(("DPO".to_owned(), Method::Dpo(recipe.dpo.clone())));
    all
}

fn ppo_name(kl_coef: f64) -> String {
    format!("PPO, KL coefficient {kl_coef}")
}

/// The folder of a run: its name in lower case, without spaces and commas.
fn folder(name: &str) -> String {
    name.to_lowercase().replace(',', "").replace(' ', "-")
}

impl Method {
    /// The number of updates; none for a method that is measured at its end only.
    fn updates(&self) -> Option<u64> {
        match self {
            Self::Ppo(recipe) => Some(recipe.updates),
            Self::Grpo(recipe) => Some(recipe.updates),
            Self::Dpo(_) => None,
        }
    }

    fn run(&self, from: &Folders, run: &Path, options: RunOptions) -> Result<()> {
        let (model, reward, prompts) =
            (from.instruct.clone(), vec![from.reward.clone()], from.data.join("prompts.jsonl"));
        match self {
            Self::Ppo(recipe) => {
                ppo(recipe, &PpoInputs { model, reward, data: prompts, adapter: None }, run, options)?;
            }
            Self::Grpo(recipe) => {
                let inputs = GrpoInputs { model, reward, data: prompts, validation: None, adapter: None };
                grpo(recipe, &inputs, run, options)?;
            }
            Self::Dpo(recipe) => {
                let data = vec![from.data.join("rankings-train.jsonl")];
                dpo(recipe, &DpoInputs { model, data, validation: None, adapter: None }, run, options)?;
            }
        }
        Ok(())
    }
}
