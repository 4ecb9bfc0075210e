//! Allowed ranges of distillation and of stored logits.

use super::keys::{COUNT, COUNT_OR_NONE, Keys, Real, SEED};
use super::{check_lora, check_model};
use crate::recipes::{DistillRecipe, TeacherLogitsRecipe};
use crate::{Recipe, Result};

impl Recipe for DistillRecipe {
    const STAGE: &'static str = "distill";

    fn check(&self, table: &str) -> Result<()> {
        check_model(&self.student, &format!("{table}student"))?;
        self.data.check(table, true)?;
        Keys { table }
            .whole("seed", self.seed, SEED)?
            .real("alpha", self.alpha, Real::AtMost(1.))?
            .real("temperature", self.temperature, Real::Positive)?
            .real("beta", self.beta, Real::AtMost(1.))?
            .real("on_policy", self.on_policy, Real::AtMost(1.))?
            .whole("max_new_tokens", self.max_new_tokens, COUNT)?
            .real("sampling_temperature", self.sampling_temperature, Real::Positive)?
            .real("hidden_weight", self.hidden_weight, Real::NotNegative)?
            .whole("student_layers", self.student_layers, COUNT_OR_NONE)?
            .whole("text_steps", self.text_steps, COUNT_OR_NONE)?
            .real("text_weight", self.text_weight, Real::NotNegative)?
            .whole("text_batch_size", self.text_batch_size, COUNT)?
            .whole("seq_len", self.seq_len, COUNT)?
            .whole("epochs", self.epochs, COUNT)?
            .whole("batch_size", self.batch_size, COUNT)?
            .tokens(self.max_tokens, self.max_length)?
            .whole("max_length", self.max_length, 2..=*COUNT.end())?
            .whole("eval_every", self.eval_every, COUNT_OR_NONE)?
            .whole("eval_batches", self.eval_batches, COUNT_OR_NONE)?
            .whole("save_every", self.save_every, COUNT_OR_NONE)?;
        let needs_teacher = [("on_policy", self.on_policy), ("hidden_weight", self.hidden_weight)];
        if let Some((key, value)) = needs_teacher.into_iter().find(|(_, value)| self.alpha == 0. && *value > 0.) {
            return Err(Keys { table }.wrong(key, value, "0 if alpha is 0, because no teacher runs"));
        }
        check_lora(self.lora.as_ref(), self.optimizer.kind, table)?;
        self.optimizer.check(&format!("{table}optimizer."))
    }
}

impl Recipe for TeacherLogitsRecipe {
    const STAGE: &'static str = "teacher-logits";

    fn check(&self, table: &str) -> Result<()> {
        self.data.check(table, true)?;
        let keys = Keys { table };
        keys.whole("seed", self.seed, SEED)?
            .real("temperature", self.temperature, Real::Positive)?
            .whole("top_k", self.top_k, COUNT)?
            .whole("batch_size", self.batch_size, COUNT)?
            .whole("max_length", self.max_length, 2..=*COUNT.end())?;
        match self.bits {
            4..=16 | 32 => Ok(()),
            bits => Err(keys.wrong("bits", bits, "from 4 to 16, or 32")),
        }
    }
}
