//! The ranges of the recipe of GRPO and RLOO.

use super::keys::{COUNT, COUNT_OR_NONE, Keys, Real, SEED};
use super::{check_lora, check_rewards};
use crate::loss::LossType;
use crate::recipes::GrpoRecipe;
use crate::rl::{MissingEos, ScaleRewards};
use crate::rollout::why_refused;
use crate::{Error, Recipe, Result};

impl Recipe for GrpoRecipe {
    const STAGE: &'static str = "grpo";

    fn why_not(key: &str) -> Option<String> {
        why_refused(key)
    }

    fn check(&self, table: &str) -> Result<()> {
        self.data.check(table, false)?;
        if !self.data.weights.is_empty() {
            return Err(Error::BadRequest(format!("{table}data.weights does not apply to prompts; leave it empty")));
        }
        check_rewards(&self.rewards, table)?;
        let replies = self.prompts_per_update.saturating_mul(self.num_generations) as u64;
        let keys = Keys { table };
        keys.whole("seed", self.seed, SEED)?
            .whole("updates", self.updates, COUNT)?
            .whole("prompts_per_update", self.prompts_per_update, COUNT)?
            .whole("num_generations", self.num_generations, 2..=100_000)?
            .whole("num_iterations", self.num_iterations, COUNT)?
            .whole("num_mini_batches", self.num_mini_batches, 1..=replies)?
            .whole("micro_batch_size", self.micro_batch_size, COUNT)?
            .whole("max_new_tokens", self.max_new_tokens, COUNT)?
            .real("temperature", self.temperature, Real::Positive)?
            .real("beta", self.beta, Real::NotNegative)?
            .real("epsilon", self.epsilon, Real::Within(1.))?
            .real("epsilon_high", self.epsilon_high, Real::Positive)?
            .whole("eval_every", self.eval_every, COUNT_OR_NONE)?
            .whole("eval_prompts", self.eval_prompts, COUNT_OR_NONE)?
            .whole("save_every", self.save_every, COUNT_OR_NONE)?;
        let is_unscaled = matches!(self.loss_type, LossType::DrGrpo | LossType::Rloo);
        if is_unscaled && self.scale_rewards != ScaleRewards::None {
            let needed = "\"none\" with loss_type dr_grpo or rloo, which do not divide by the deviation";
            return Err(keys.wrong("scale_rewards", "\"group\"", needed));
        }
        match self.missing_eos {
            MissingEos::None => {}
            MissingEos::Subtract(x) => drop(keys.real("missing_eos.subtract", x, Real::NotNegative)?),
            MissingEos::Replace(x) => drop(keys.real("missing_eos.replace", x, Real::Any)?),
        }
        self.optimizer.check(&format!("{table}optimizer."))?;
        check_lora(self.lora.as_ref(), self.optimizer.kind, table)?;
        match self.lora.as_ref().map(|lora| lora.lora_dropout).filter(|dropout| *dropout > 0.) {
            Some(dropout) => {
                let allowed = "0: the probability ratio compares the policy with itself";
                Err(Keys { table: &format!("{table}lora.") }.wrong("lora_dropout", dropout, allowed))
            }
            None => Ok(()),
        }
    }
}
