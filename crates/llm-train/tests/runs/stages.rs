//! Each stage with the inputs of the fixture.

use llm_train::recipes;

use super::*;

pub fn pretrain(fixture: &Fixture, knobs: &Knobs, out: &Path, options: RunOptions) -> Result<Outcome> {
    let recipe = PretrainRecipe {
        seed: knobs.seed,
        steps: knobs.length,
        batch_size: knobs.batch_size,
        seq_len: 8,
        eval_every: 2,
        eval_batches: 2,
        save_every: knobs.save_every,
        optimizer: knobs.optimizer(),
        model: knobs.shape(),
        ..PretrainRecipe::default()
    };
    let inputs = PretrainInputs {
        model: None,
        tokenizer: fixture.path("model.tokenizer"),
        data: vec![knobs.data(fixture, "shards")],
    };
    recipes::pretrain(&recipe, &inputs, out, options)
}

pub fn finetune(fixture: &Fixture, knobs: &Knobs, out: &Path, options: RunOptions) -> Result<Outcome> {
    let recipe = FinetuneRecipe {
        seed: knobs.seed,
        epochs: knobs.length,
        batch_size: knobs.batch_size,
        max_tokens: knobs.max_tokens,
        max_length: 40,
        text_batch_size: 2,
        seq_len: 8,
        eval_every: 2,
        save_every: knobs.save_every,
        optimizer: knobs.optimizer(),
        lora: knobs.lora.clone(),
        ..FinetuneRecipe::default()
    };
    let inputs = FinetuneInputs {
        adapter: None,
        model: fixture.path("model"),
        data: vec![knobs.data(fixture, "chats.jsonl")],
        validation: Some(fixture.path("other.jsonl")),
        text: knobs.text.then(|| fixture.path("shards")),
    };
    recipes::finetune(&recipe, &inputs, out, options)
}

pub fn reward(fixture: &Fixture, knobs: &Knobs, out: &Path, options: RunOptions) -> Result<Outcome> {
    let recipe = RewardRecipe {
        seed: knobs.seed,
        epochs: knobs.length,
        batch_size: knobs.batch_size,
        max_tokens: knobs.max_tokens,
        max_length: 40,
        eval_every: 2,
        save_every: knobs.save_every,
        optimizer: knobs.optimizer(),
        ..RewardRecipe::default()
    };
    let inputs = RewardInputs {
        adapter: None,
        model: fixture.path("model"),
        data: vec![knobs.data(fixture, "pairs.jsonl")],
        validation: Some(fixture.path("other-pairs.jsonl")),
    };
    recipes::reward(&recipe, &inputs, out, options)
}

pub fn ppo(fixture: &Fixture, knobs: &Knobs, out: &Path, options: RunOptions) -> Result<Outcome> {
    let optimizer = knobs.optimizer();
    let recipe = PpoRecipe {
        seed: knobs.seed,
        updates: knobs.length,
        episodes: knobs.batch_size,
        num_ppo_epochs: 1,
        max_new_tokens: 4,
        save_every: knobs.save_every,
        value_optimizer: OptimizerConfig { learning_rate: 1e-3, ..optimizer.clone() },
        optimizer,
        ..PpoRecipe::default()
    };
    let inputs = PpoInputs {
        adapter: None,
        model: fixture.path("model"),
        reward: vec![fixture.path("reward-model")],
        data: knobs.data(fixture, "prompts.jsonl"),
    };
    recipes::ppo(&recipe, &inputs, out, options)
}

pub fn dpo(fixture: &Fixture, knobs: &Knobs, out: &Path, options: RunOptions) -> Result<Outcome> {
    let recipe = DpoRecipe {
        seed: knobs.seed,
        epochs: knobs.length,
        batch_size: knobs.batch_size,
        max_length: 40,
        eval_every: 2,
        save_every: knobs.save_every,
        optimizer: knobs.optimizer(),
        lora: knobs.lora.clone(),
        ..DpoRecipe::default()
    };
    let inputs = DpoInputs {
        adapter: None,
        model: fixture.path("model"),
        data: vec![knobs.data(fixture, "pairs.jsonl")],
        validation: Some(fixture.path("other-pairs.jsonl")),
    };
    recipes::dpo(&recipe, &inputs, out, options)
}

pub fn kto(fixture: &Fixture, knobs: &Knobs, out: &Path, options: RunOptions) -> Result<Outcome> {
    let recipe = KtoRecipe {
        seed: knobs.seed,
        epochs: knobs.length,
        batch_size: knobs.batch_size,
        max_length: 40,
        eval_every: 2,
        save_every: knobs.save_every,
        optimizer: knobs.optimizer(),
        lora: knobs.lora.clone(),
        ..KtoRecipe::default()
    };
    let inputs = KtoInputs {
        adapter: None,
        model: fixture.path("model"),
        data: vec![knobs.data(fixture, "pairs.jsonl")],
        validation: Some(fixture.path("other-pairs.jsonl")),
    };
    recipes::kto(&recipe, &inputs, out, options)
}

pub fn grpo(fixture: &Fixture, knobs: &Knobs, out: &Path, options: RunOptions) -> Result<Outcome> {
    let recipe = GrpoRecipe {
        seed: knobs.seed,
        updates: knobs.length,
        prompts_per_update: knobs.batch_size,
        num_generations: 2,
        max_new_tokens: 4,
        eval_every: 2,
        save_every: knobs.save_every,
        optimizer: knobs.optimizer(),
        ..GrpoRecipe::default()
    };
    let inputs = GrpoInputs {
        adapter: None,
        model: fixture.path("model"),
        reward: vec![fixture.path("reward-model")],
        data: knobs.data(fixture, "prompts.jsonl"),
        validation: Some(fixture.path("prompts.jsonl")),
    };
    recipes::grpo(&recipe, &inputs, out, options)
}

pub fn distill(fixture: &Fixture, knobs: &Knobs, out: &Path, options: RunOptions) -> Result<Outcome> {
    let recipe = DistillRecipe {
        seed: knobs.seed,
        epochs: knobs.length,
        batch_size: knobs.batch_size,
        max_tokens: knobs.max_tokens,
        max_length: 40,
        text_steps: 2,
        text_batch_size: 2,
        seq_len: 8,
        eval_every: 2,
        save_every: knobs.save_every,
        optimizer: knobs.optimizer(),
        student: knobs.shape(),
        ..DistillRecipe::default()
    };
    let inputs = DistillInputs {
        teacher: fixture.path("model"),
        data: vec![knobs.data(fixture, "chats.jsonl")],
        validation: Some(fixture.path("other.jsonl")),
        text: Some(fixture.path("shards")),
        ..DistillInputs::default()
    };
    recipes::distill(&recipe, &inputs, out, options)
}
