//! Several pipeline runs with different seeds: each has its own dataset, held-out items and initial weights.

use std::path::{Path, PathBuf};

use super::evaluate::Evaluation;
use super::{LifecycleRecipe, lifecycle, report};
use crate::run::{RunOptions, StageTimes, already_exists, has_begun};
use crate::{Error, Result};

/// Runs the pipeline once for each of `seeds` consecutive seeds, starting at the recipe's, in `out/seed-N`. Writes
/// `out/report.md` over all runs and returns its table. Finished runs are not repeated.
pub fn lifecycle_seeds(
    recipe: &LifecycleRecipe,
    seeds: u64,
    out: impl AsRef<Path>,
    options: RunOptions,
) -> Result<String> {
    let out = out.as_ref();
    let RunOptions { resume, device, observer, stop } = options;
    if seeds == 0 {
        return Err(Error::BadRequest("--seeds is 0; give at least 1".to_owned()));
    }
    let (mut dirs, mut evaluations, mut minutes) = (Vec::<PathBuf>::new(), Vec::new(), Vec::new());
    for number in 0..seeds {
        let recipe = reseeded(recipe, number);
        let dir = out.join(format!("seed-{}", recipe.world.seed));
        let begun = has_begun(&dir);
        if begun && !resume {
            return Err(already_exists(&dir, true));
        }
        let options = RunOptions { resume: begun, device: device.clone(), observer: &mut *observer, stop };
        lifecycle(&recipe, &dir, options)?;
        evaluations.push(read(&dir)?);
        let times = report::stage_times(&StageTimes::open(&dir.join("times.json"))?, &dir)?;
        minutes.push(times.iter().map(|(_, seconds)| seconds).sum::<f64>() / 60.);
        dirs.push(dir);
    }
    let dirs: Vec<&Path> = dirs.iter().map(PathBuf::as_path).collect();
    report::write_seeds(&dirs, &evaluations, &minutes, out)
}

/// The same recipe with `by` added to all seeds.
pub(in crate::recipes) fn reseeded(recipe: &LifecycleRecipe, by: u64) -> LifecycleRecipe {
    let mut recipe = recipe.clone();
    for seed in [
        &mut recipe.world.seed,
        &mut recipe.annotator.seed,
        &mut recipe.pretrain.seed,
        &mut recipe.finetune.seed,
        &mut recipe.reward.seed,
        &mut recipe.ppo.seed,
        &mut recipe.distill.seed,
    ] {
        *seed = seed.wrapping_add(by);
    }
    recipe
}

pub(super) fn read(dir: &Path) -> Result<Evaluation> {
    let path = dir.join("evaluation.json");
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    serde_json::from_str(&text).map_err(|e| Error::BadFile(format!("{}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_run_has_other_seeds_and_nothing_else_changes() {
        let recipe = LifecycleRecipe::default();
        assert_eq!(reseeded(&recipe, 0), recipe);
        let text = |recipe: &LifecycleRecipe| toml::Table::try_from(recipe).unwrap().to_string();
        let (first, third) = (text(&recipe), text(&reseeded(&recipe, 2)));
        assert_eq!(first.matches("seed = 42").count(), 7, "world, annotator and five stages: {first}");
        assert_eq!(first.replace("seed = 42", "seed = 44"), third);
    }
}
