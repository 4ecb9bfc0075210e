//! Allowed ranges of the recipes of DPO and KTO.

use super::check_policy_lora;
use super::keys::{COUNT, COUNT_OR_NONE, Keys, Real, SEED};
use crate::recipes::{DpoRecipe, KtoRecipe, PairLoss};
use crate::{Recipe, Result};

impl Recipe for DpoRecipe {
    const STAGE: &'static str = "dpo";

    fn check(&self, table: &str) -> Result<()> {
        self.data.check(table, true)?;
        let keys = Keys { table };
        keys.whole("seed", self.seed, SEED)?
            .real("beta", self.beta, Real::Positive)?
            .real("label_smoothing", self.label_smoothing, Real::Below(0.5))?
            .real("simpo_gamma", self.simpo_gamma, Real::NotNegative)?
            .real("nll_weight", self.nll_weight, Real::NotNegative)?
            .whole("epochs", self.epochs, COUNT)?
            .whole("batch_size", self.batch_size, COUNT)?
            .whole("gradient_accumulation_steps", self.gradient_accumulation_steps, 1..=1_000_000)?
            .whole("max_length", self.max_length, 2..=*COUNT.end())?
            .real("validation_share", self.validation_share, Real::Within(1.))?
            .whole("eval_every", self.eval_every, COUNT_OR_NONE)?
            .whole("eval_batches", self.eval_batches, COUNT_OR_NONE)?
            .whole("save_every", self.save_every, COUNT_OR_NONE)?;
        if self.label_smoothing > 0. && !self.loss.has_label_smoothing() {
            let allowed = "0 unless loss is \"sigmoid\", \"sigmoid_norm\" or \"robust\"";
            return Err(keys.wrong("label_smoothing", self.label_smoothing, allowed));
        }
        if self.nll_weight > 0. && self.loss == PairLoss::Orpo {
            return Err(keys.wrong("nll_weight", self.nll_weight, "0 with loss = \"orpo\", which has this term"));
        }
        if self.precompute_ref_log_probs && !self.loss.has_reference() {
            let allowed = "false with loss = \"orpo\" or \"simpo\", which have no reference";
            return Err(keys.wrong("precompute_ref_log_probs", true, allowed));
        }
        check_policy_lora(self.lora.as_ref(), self.optimizer.kind, table)?;
        self.optimizer.check(&format!("{table}optimizer."))
    }
}

impl Recipe for KtoRecipe {
    const STAGE: &'static str = "kto";

    fn check(&self, table: &str) -> Result<()> {
        self.data.check(table, true)?;
        let keys = Keys { table };
        keys.whole("seed", self.seed, SEED)?
            .real("beta", self.beta, Real::Positive)?
            .real("desirable_weight", self.desirable_weight, Real::Positive)?
            .real("undesirable_weight", self.undesirable_weight, Real::Positive)?
            .whole("epochs", self.epochs, COUNT)?
            .whole("batch_size", self.batch_size, COUNT)?
            .whole("gradient_accumulation_steps", self.gradient_accumulation_steps, 1..=1_000_000)?
            .whole("max_length", self.max_length, 2..=*COUNT.end())?
            .real("validation_share", self.validation_share, Real::Within(1.))?
            .whole("eval_every", self.eval_every, COUNT_OR_NONE)?
            .whole("eval_batches", self.eval_batches, COUNT_OR_NONE)?
            .whole("save_every", self.save_every, COUNT_OR_NONE)?;
        if self.batch_size == 1 && self.gradient_accumulation_steps == 1 {
            let allowed = "at least 2 with one micro-batch per step: each prompt needs the answer to another one";
            return Err(keys.wrong("batch_size", 1, allowed));
        }
        check_policy_lora(self.lora.as_ref(), self.optimizer.kind, table)?;
        self.optimizer.check(&format!("{table}optimizer."))
    }
}
