//! Allowed ranges of all numbers in recipes, checked when a recipe is read and before a run starts. An error names the key, its
//! value and the allowed range.

use llm_model::{LoraConfig, ModelConfig};

use self::keys::{COUNT, COUNT_OR_NONE, Keys, Real, SEED, check_tokenizer};
use crate::compat::{refuse_overwritten, without_token_ids};
use crate::data::{DataOptions, TooLong};
use crate::optim::{OptimizerConfig, OptimizerKind};
use crate::recipes::{
    CompareMethodsRecipe, FinetuneRecipe, LifecycleRecipe, PretrainRecipe, RankingLoss, RewardRecipe, ScalingRecipe,
};
use crate::rewards::RewardTable;
use crate::run::Best;
use crate::{Error, Recipe, Result, recipe};

mod best_of;
mod compare_alignment;
mod distill;
mod grpo;
pub(crate) mod keys;
mod ppo;
mod preferences;

impl OptimizerConfig {
    /// Checks every number. Errors put `table` (empty, or ending with a dot) before the key.
    pub(crate) fn check(&self, table: &str) -> Result<()> {
        Keys { table }
            .real("learning_rate", self.learning_rate, Real::Positive)?
            .whole("warmup_steps", self.warmup_steps, COUNT_OR_NONE)?
            .real("min_learning_rate_ratio", self.min_learning_rate_ratio, Real::AtMost(1.))?
            .real("decay_share", self.decay_share, Real::AtMost(1.))?
            .real("beta1", self.beta1, Real::Below(1.))?
            .real("beta2", self.beta2, Real::Below(1.))?
            .real("eps", self.eps, Real::Within(10.))?
            .real("weight_decay", self.weight_decay, Real::AtMost(1000.))?
            .real("max_grad_norm", self.max_grad_norm, Real::NotNegative)?;
        Ok(())
    }
}

impl DataOptions {
    /// Checks the weights and that `too_long` applies. Errors put `table` (empty, or ending with a dot) before the key.
    fn check(&self, table: &str, can_cut: bool) -> Result<()> {
        let keys = Keys { table: &format!("{table}data.") };
        check_weights(&self.weights, &keys)?;
        if self.too_long == TooLong::Cut && !can_cut {
            return Err(keys.wrong(
                "too_long",
                "\"cut\"",
                "\"drop\" in this stage, which needs whole answers and prompts",
            ));
        }
        Ok(())
    }
}

/// Checks the weights of data files.
fn check_weights(weights: &[f64], keys: &Keys) -> Result<()> {
    for weight in weights {
        keys.real("weights", *weight, Real::AtMost(1000.))?;
    }
    match !weights.is_empty() && weights.iter().all(|weight| *weight == 0.) {
        true => Err(keys.wrong("weights", "0 for all files", "above 0 for at least one")),
        false => Ok(()),
    }
}

impl Recipe for PretrainRecipe {
    const STAGE: &'static str = "pretrain";

    fn check(&self, table: &str) -> Result<()> {
        let positions = self.model.max_position_embeddings as u64;
        check_model(&self.model, &format!("{table}model"))?;
        Keys { table }
            .whole("seed", self.seed, SEED)?
            .whole("steps", self.steps, COUNT)?
            .whole("batch_size", self.batch_size, COUNT)?
            .whole("gradient_accumulation_steps", self.gradient_accumulation_steps, 1..=1_000_000)?
            .whole("seq_len", self.seq_len, 1..=positions)?
            .real("dropout", self.dropout, Real::Below(1.))?
            .real("z_loss_coef", self.z_loss_coef, Real::NotNegative)?
            .real("ema_decay", self.ema_decay, Real::Below(1.))?
            .whole("eval_every", self.eval_every, COUNT_OR_NONE)?
            .whole("eval_batches", self.eval_batches, COUNT_OR_NONE)?
            .whole("save_every", self.save_every, COUNT_OR_NONE)?;
        check_weights(&self.data.weights, &Keys { table: &format!("{table}data.") })?;
        self.optimizer.check(&format!("{table}optimizer."))
    }
}

impl Recipe for ScalingRecipe {
    const STAGE: &'static str = "scaling";

    /// The built-in recipe of pre-training, with the changes of the series.
    fn defaults() -> toml::Table {
        let pretrain = PretrainRecipe::STAGE;
        let mut table = toml::Table::from_iter([(pretrain.to_owned(), recipe::built_in_table(pretrain).into())]);
        recipe::merge(&mut table, recipe::built_in_table(Self::STAGE));
        table
    }

    fn check(&self, table: &str) -> Result<()> {
        Keys { table }.whole("seed", self.seed, 0..=1 << 60)?.whole("seeds", self.seeds, 1..=100)?.whole(
            "num_experts",
            self.num_experts,
            0..=1024,
        )?;
        self.check_series()?;
        self.pretrain.check(&format!("{table}pretrain."))
    }
}

impl Recipe for CompareMethodsRecipe {
    const STAGE: &'static str = "compare-methods";

    /// The built-in recipes of its stages, with the changes of the comparison.
    fn defaults() -> toml::Table {
        let stages = [PretrainRecipe::STAGE, FinetuneRecipe::STAGE];
        let mut table =
            toml::Table::from_iter(stages.map(|stage| (stage.to_owned(), recipe::built_in_table(stage).into())));
        recipe::merge(&mut table, recipe::built_in_table(Self::STAGE));
        table
    }

    fn check(&self, table: &str) -> Result<()> {
        Keys { table }
            .whole("seed", self.seed, SEED)?
            .whole("general_bytes", self.general_bytes, 1000..=100_000_000_000)?
            .whole("domain_bytes", self.domain_bytes, 1000..=100_000_000_000)?
            .whole("tasks", self.tasks, COUNT)?
            .whole("held_out", self.held_out, COUNT)?;
        check_tokenizer(&self.tokenizer, &format!("{table}tokenizer."))?;
        self.pretrain.check(&format!("{table}pretrain."))?;
        self.finetune.check(&format!("{table}finetune."))
    }
}

impl Recipe for FinetuneRecipe {
    const STAGE: &'static str = "finetune";

    fn check(&self, table: &str) -> Result<()> {
        self.data.check(table, true)?;
        Keys { table }
            .whole("seed", self.seed, SEED)?
            .whole("epochs", self.epochs, COUNT)?
            .whole("batch_size", self.batch_size, COUNT)?
            .whole("gradient_accumulation_steps", self.gradient_accumulation_steps, 1..=1_000_000)?
            .whole("eval_prompts", self.eval_prompts, COUNT_OR_NONE)?
            .whole("eval_max_new_tokens", self.eval_max_new_tokens, COUNT)?
            .whole("early_stop_patience", self.early_stop_patience, COUNT_OR_NONE)?
            .real("neftune_noise_alpha", self.neftune_noise_alpha, Real::NotNegative)?
            .tokens(self.max_tokens, self.max_length)?
            .whole("max_length", self.max_length, 2..=*COUNT.end())?
            .whole("text_batch_size", self.text_batch_size, COUNT)?
            .whole("seq_len", self.seq_len, COUNT)?
            .real("text_weight", self.text_weight, Real::NotNegative)?
            .whole("eval_every", self.eval_every, COUNT_OR_NONE)?
            .whole("eval_batches", self.eval_batches, COUNT_OR_NONE)?
            .whole("save_every", self.save_every, COUNT_OR_NONE)?;
        if self.best == Best::ExactMatch && self.eval_prompts == 0 {
            let message = "best is \"exact_match\"; eval_prompts must then be at least 1";
            return Err(Error::BadRequest(format!("{table}{message}")));
        }
        check_lora(self.lora.as_ref(), self.optimizer.kind, table)?;
        self.optimizer.check(&format!("{table}optimizer."))
    }
}

impl Recipe for RewardRecipe {
    const STAGE: &'static str = "reward";

    fn check(&self, table: &str) -> Result<()> {
        self.data.check(table, false)?;
        Keys { table }
            .whole("seed", self.seed, SEED)?
            .whole("epochs", self.epochs, COUNT)?
            .whole("batch_size", self.batch_size, COUNT)?
            .tokens(self.max_tokens, self.max_length)?
            .whole("max_length", self.max_length, 2..=*COUNT.end())?
            .whole("normalize_samples", self.normalize_samples, COUNT_OR_NONE)?
            .whole("normalize_max_new_tokens", self.normalize_max_new_tokens, COUNT)?
            .real("center_rewards_coefficient", self.center_rewards_coefficient, Real::NotNegative)?
            .real("validation_share", self.validation_share, Real::Within(1.))?
            .whole("eval_every", self.eval_every, COUNT_OR_NONE)?
            .whole("eval_batches", self.eval_batches, COUNT_OR_NONE)?
            .whole("save_every", self.save_every, COUNT_OR_NONE)?;
        if self.loss == RankingLoss::PlackettLuce && !self.ties {
            let allowed = "true with loss = \"plackett_luce\", whose orders contain the ties";
            return Err(Keys { table }.wrong("ties", false, allowed));
        }
        let heads = Keys { table: &format!("{table}heads.") };
        self.heads.iter().try_for_each(|(name, weight)| heads.real(name, *weight, Real::Any).map(|_| ()))?;
        check_lora(self.lora.as_ref(), self.optimizer.kind, table)?;
        self.optimizer.check(&format!("{table}optimizer."))
    }
}

impl Recipe for LifecycleRecipe {
    const STAGE: &'static str = "lifecycle";

    /// The built-in recipes of the stages, with the changes of the pipeline.
    fn defaults() -> toml::Table {
        let stages = PIPELINE_STAGES.map(|(stage, _)| (stage.to_owned(), recipe::built_in_table(stage).into()));
        let mut table = toml::Table::from_iter(stages);
        recipe::merge(&mut table, recipe::built_in_table(Self::STAGE));
        table
    }

    fn check(&self, table: &str) -> Result<()> {
        let (world, questions) = (&self.world, &self.questions);
        Keys { table: &format!("{table}world.") }.whole("seed", world.seed, SEED)?.whole(
            "corpus_bytes",
            world.corpus_bytes,
            1000..=100_000_000_000,
        )?;
        Keys { table: &format!("{table}questions.") }
            .whole("tasks", questions.tasks, COUNT)?
            .whole("crowd", questions.crowd, COUNT)?
            .whole("dialogues", questions.dialogues, COUNT)?
            .whole("echoes", questions.echoes, COUNT)?
            .whole("lessons", questions.lessons, COUNT)?
            .whole("probes", questions.probes, COUNT)?
            .whole("rankings", questions.rankings, COUNT)?
            .whole("prompts", questions.prompts, COUNT)?
            .whole("held_out", questions.held_out, COUNT)?;
        check_tokenizer(&self.tokenizer, &format!("{table}tokenizer."))?;
        Keys { table: &format!("{table}annotator.") }.whole("seed", self.annotator.seed, SEED)?;
        self.annotator.validate().map_err(|e| Error::BadRequest(format!("{table}annotator.{e}")))?;
        self.pretrain.check(&format!("{table}pretrain."))?;
        self.finetune.check(&format!("{table}finetune."))?;
        self.reward.check(&format!("{table}reward."))?;
        self.ppo.check(&format!("{table}ppo."))?;
        self.distill.check(&format!("{table}distill."))?;
        let adapted = [
            ("finetune", &self.finetune.lora),
            ("reward", &self.reward.lora),
            ("ppo", &self.ppo.lora),
            ("distill", &self.distill.lora),
        ];
        if let Some((stage, _)) = adapted.iter().find(|(_, lora)| lora.is_some()) {
            let message = format!("{stage}.lora: the stages of the pipeline need full weights; remove the table");
            return Err(Error::BadRequest(format!("{table}{message}")));
        }
        // The tokenizer and the pre-trained model set these keys; all models have the same context length.
        let (model, student) = (&self.pretrain.model, &self.distill.student);
        let max_position_embeddings = model.max_position_embeddings;
        refuse_overwritten(&format!("{table}pretrain.model"), model, &without_token_ids(model), "the tokenizer")?;
        let distilled = ModelConfig { max_position_embeddings, ..without_token_ids(student) };
        refuse_overwritten(&format!("{table}distill.student"), student, &distilled, "the teacher")?;
        let positions = max_position_embeddings as u64;
        Keys { table: &format!("{table}ppo.") }.whole("max_new_tokens", self.ppo.max_new_tokens, 1..=positions - 1)?;
        Keys { table: &format!("{table}distill.") }.whole("seq_len", self.distill.seq_len, 1..=positions)?;
        Ok(())
    }

    fn may_change(key: &str, run: &std::path::Path) -> bool {
        let Some((table, key)) = key.split_once('.') else { return false };
        let stage = PIPELINE_STAGES.iter().find(|(name, _)| *name == table).map(|(_, folder)| run.join(folder));
        stage.is_some_and(|stage| match (crate::run::has_begun(&stage), crate::run::is_finished(&stage)) {
            (false, _) => true,
            (true, finished) => !finished && recipe::CHANGEABLE.contains(&key),
        })
    }
}

/// The stages of the pipeline: table in the recipe, folder.
const PIPELINE_STAGES: [(&str, &str); 5] =
    [("pretrain", "base"), ("finetune", "instruct"), ("reward", "reward"), ("ppo", "aligned"), ("distill", "student")];

/// Checks the configuration of a new model; `table` is its name in the recipe.
fn check_model(config: &ModelConfig, table: &str) -> Result<()> {
    let keys = Keys { table: &format!("{table}.") };
    keys.real("initializer_range", config.initializer_range, Real::Within(100.))?;
    for (key, number) in [
        ("rms_norm_eps", Some(config.rms_norm_eps)),
        ("rope_theta", Some(config.rope_theta)),
        ("rope_local_theta", config.rope_local_theta),
        ("query_pre_attn_scalar", config.query_pre_attn_scalar),
        ("attn_logit_softcapping", config.attn_logit_softcapping),
        ("final_logit_softcapping", config.final_logit_softcapping),
    ] {
        keys.real(key, number.unwrap_or(1.), Real::Positive)?;
    }
    if let Some(experts) = &config.experts {
        let keys = Keys { table: &format!("{table}.experts.") };
        keys.real("router_aux_loss_coef", experts.router_aux_loss_coef, Real::NotNegative)?.real(
            "router_z_loss_coef",
            experts.router_z_loss_coef,
            Real::NotNegative,
        )?;
    }
    config.clone().validated(table)?;
    Ok(())
}

/// Checks the tables `[[rewards]]`.
pub(crate) fn check_rewards(rewards: &[RewardTable], table: &str) -> Result<()> {
    let at = |(number, reward): (usize, &RewardTable)| reward.check(&format!("{table}rewards[{number}]."));
    rewards.iter().enumerate().try_for_each(at)
}

/// Checks the table `lora` of the table `table`, and that the optimizer can train an adapter.
fn check_lora(lora: Option<&LoraConfig>, optimizer: OptimizerKind, table: &str) -> Result<()> {
    let Some(lora) = lora else { return Ok(()) };
    if optimizer == OptimizerKind::Muon {
        let keys = Keys { table: &format!("{table}optimizer.") };
        return Err(keys.wrong(
            "kind",
            "\"muon\"",
            "\"adamw\" with the table [lora]: Muon trains the matrices of a model",
        ));
    }
    Keys { table: &format!("{table}lora.") }
        .whole("r", lora.r, 1..=65536)?
        .real("lora_alpha", lora.lora_alpha, Real::Positive)?
        .real("lora_dropout", lora.lora_dropout, Real::Below(1.))?;
    Ok(())
}

/// [`check_lora`] of a policy whose log-probabilities are compared with those of other passes.
fn check_policy_lora(lora: Option<&LoraConfig>, optimizer: OptimizerKind, table: &str) -> Result<()> {
    check_lora(lora, optimizer, table)?;
    match lora.map(|lora| lora.lora_dropout).filter(|dropout| *dropout > 0.) {
        None => Ok(()),
        Some(dropout) => {
            let allowed = "0: the probability ratio compares the policy with itself";
            Err(Keys { table: &format!("{table}lora.") }.wrong("lora_dropout", dropout, allowed))
        }
    }
}

#[cfg(test)]
mod tests;
