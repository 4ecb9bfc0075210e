//! The ranges of the recipe of the comparison of alignment methods.

use super::keys::{COUNT, Keys, Real};
use crate::recipes::{CompareAlignmentRecipe, DpoRecipe, GrpoRecipe, LifecycleRecipe};
use crate::{Error, Recipe, Result, recipe};

impl Recipe for CompareAlignmentRecipe {
    const STAGE: &'static str = "compare-alignment";

    /// The built-in recipes of its stages, with the changes of the comparison.
    fn defaults() -> toml::Table {
        let mut rloo = GrpoRecipe::defaults();
        recipe::merge(&mut rloo, recipe::built_in_table("rloo"));
        let stages = [
            ("pipeline", LifecycleRecipe::defaults()),
            ("grpo", GrpoRecipe::defaults()),
            ("rloo", rloo),
            ("dpo", DpoRecipe::defaults()),
        ];
        let mut table = toml::Table::from_iter(stages.map(|(key, stage)| (key.to_owned(), stage.into())));
        recipe::merge(&mut table, recipe::built_in_table(Self::STAGE));
        table
    }

    fn check(&self, table: &str) -> Result<()> {
        let keys = Keys { table };
        keys.whole("seeds", self.seeds, 1..=100)?.whole("best_of", self.best_of, 1..=1000)?.whole(
            "questions",
            self.questions,
            COUNT,
        )?;
        for (number, kl_coef) in self.kl_coefs.iter().enumerate() {
            keys.real("kl_coefs", *kl_coef, Real::NotNegative)?;
            if self.kl_coefs[..number].contains(kl_coef) {
                return Err(keys.wrong("kl_coefs", format!("{:?}", self.kl_coefs), "different numbers"));
            }
        }
        self.pipeline.check(&format!("{table}pipeline."))?;
        self.grpo.check(&format!("{table}grpo."))?;
        self.rloo.check(&format!("{table}rloo."))?;
        self.dpo.check(&format!("{table}dpo."))?;
        match [("grpo", &self.grpo.lora), ("rloo", &self.rloo.lora), ("dpo", &self.dpo.lora)]
            .iter()
            .find(|(_, lora)| lora.is_some())
        {
            Some((stage, _)) => {
                let message = format!("{stage}.lora: the methods are compared with full weights; remove the table");
                Err(Error::BadRequest(format!("{table}{message}")))
            }
            None => Ok(()),
        }
    }
}
