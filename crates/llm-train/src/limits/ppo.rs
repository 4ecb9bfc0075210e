//! The ranges of the recipe of PPO.

use super::keys::{COUNT, COUNT_OR_NONE, Keys, Real, SEED};
use super::{check_policy_lora, check_rewards};
use crate::recipes::PpoRecipe;
use crate::rl::MissingEos;
use crate::rollout::why_refused;
use crate::{Error, Recipe, Result};

impl Recipe for PpoRecipe {
    const STAGE: &'static str = "ppo";

    fn why_not(key: &str) -> Option<String> {
        why_refused(key)
    }

    fn check(&self, table: &str) -> Result<()> {
        self.data.check(table, false)?;
        if !self.data.weights.is_empty() {
            return Err(Error::BadRequest(format!("{table}data.weights does not apply to prompts; leave it empty")));
        }
        check_rewards(&self.rewards, table)?;
        Keys { table }
            .whole("seed", self.seed, SEED)?
            .whole("updates", self.updates, COUNT)?
            .whole("episodes", self.episodes, COUNT)?
            .whole("num_ppo_epochs", self.num_ppo_epochs, COUNT)?
            .whole("num_mini_batches", self.num_mini_batches, 1..=self.episodes as u64)?
            .whole("micro_batch_size", self.micro_batch_size, COUNT)?
            .whole("max_new_tokens", self.max_new_tokens, COUNT)?
            .real("temperature", self.temperature, Real::Positive)?
            .real("kl_coef", self.kl_coef, Real::NotNegative)?
            .real("kl_target_per_sequence", self.kl_target_per_sequence.unwrap_or(1.), Real::Positive)?
            .real("kl_horizon", self.kl_horizon, Real::Positive)?
            .real("target_kl", self.target_kl.unwrap_or(1.), Real::Positive)?
            .real("cliprange", self.cliprange, Real::Positive)?
            .real("cliprange_value", self.cliprange_value, Real::Positive)?
            .real("vf_coef", self.vf_coef, Real::NotNegative)?
            .real("entropy_coef", self.entropy_coef, Real::NotNegative)?
            .real("gamma", self.gamma, Real::AtMost(1.))?
            .real("lam", self.lam, Real::AtMost(1.))?
            .whole("save_every", self.save_every, COUNT_OR_NONE)?;
        match self.missing_eos {
            MissingEos::None => {}
            MissingEos::Subtract(x) => drop(Keys { table }.real("missing_eos.subtract", x, Real::NotNegative)?),
            MissingEos::Replace(x) => drop(Keys { table }.real("missing_eos.replace", x, Real::Any)?),
        }
        self.optimizer.check(&format!("{table}optimizer."))?;
        check_policy_lora(self.lora.as_ref(), self.optimizer.kind, table)?;
        if self.value_head_on_policy && self.lora.is_some() {
            let allowed = "false with the table [lora]: the hidden states below an adapter are frozen";
            return Err(Keys { table }.wrong("value_head_on_policy", true, allowed));
        }
        self.value_optimizer.check(&format!("{table}value_optimizer."))
    }
}
