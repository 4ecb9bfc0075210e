//! The ranges of the recipes of best-of-n and expert iteration.

use super::check_rewards;
use super::keys::{COUNT, Keys, Real, SEED};
use crate::recipes::{BestOfNRecipe, ExpertIterationRecipe, FinetuneRecipe};
use crate::rl::MissingEos;
use crate::rollout::why_refused;
use crate::{Error, Recipe, Result, recipe};

impl Recipe for BestOfNRecipe {
    const STAGE: &'static str = "best-of-n";

    fn why_not(key: &str) -> Option<String> {
        why_refused(key)
    }

    fn check(&self, table: &str) -> Result<()> {
        self.data.check(table, false)?;
        if !self.data.weights.is_empty() {
            return Err(Error::BadRequest(format!("{table}data.weights does not apply to prompts; leave it empty")));
        }
        check_rewards(&self.rewards, table)?;
        let keys = Keys { table };
        keys.whole("seed", self.seed, SEED)?
            .whole("n", self.n, 1..=100_000)?
            .whole("batch_size", self.batch_size, COUNT)?
            .whole("max_new_tokens", self.max_new_tokens, COUNT)?
            .real("temperature", self.temperature, Real::Positive)?;
        match self.missing_eos {
            MissingEos::None => {}
            MissingEos::Subtract(x) => drop(keys.real("missing_eos.subtract", x, Real::NotNegative)?),
            MissingEos::Replace(x) => drop(keys.real("missing_eos.replace", x, Real::Any)?),
        }
        Ok(())
    }
}

impl Recipe for ExpertIterationRecipe {
    const STAGE: &'static str = "expert-iteration";

    /// The built-in recipes of its stages, with the changes of expert iteration.
    fn defaults() -> toml::Table {
        let stages = [("best_of_n", BestOfNRecipe::STAGE), ("finetune", FinetuneRecipe::STAGE)];
        let mut table =
            toml::Table::from_iter(stages.map(|(key, stage)| (key.to_owned(), recipe::built_in_table(stage).into())));
        recipe::merge(&mut table, recipe::built_in_table(Self::STAGE));
        table
    }

    fn why_not(key: &str) -> Option<String> {
        why_refused(key)
    }

    fn check(&self, table: &str) -> Result<()> {
        Keys { table }.whole("iterations", self.iterations, 1..=1000)?;
        self.best_of_n.check(&format!("{table}best_of_n."))?;
        self.finetune.check(&format!("{table}finetune."))?;
        if self.finetune.lora.is_some() {
            let message = "finetune.lora: the next iteration samples from full weights; remove the table";
            return Err(Error::BadRequest(format!("{table}{message}")));
        }
        Ok(())
    }
}
