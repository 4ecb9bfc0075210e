//! Measures the cost of training steps: pre-training on random tokens, fine-tuning on conversations.

use std::path::Path;
use std::time::Instant;

use candle_core::Device;
use llm_engine::peak_memory;
use llm_model::{Batch, Head, Model};
use rand::RngExt;
use serde::Serialize;

use crate::adapters::Adapters;
use crate::examples::Example;
use crate::optim::Learner;
use crate::recipes::{FinetuneInputs, FinetuneRecipe, PretrainRecipe, load_finetune, train_on_answers};
use crate::rows::read_examples;
use crate::run::rng;
use crate::{Error, Result, loss};

/// Measured cost of a training step.
#[derive(Debug, Clone, Serialize)]
pub struct TrainingCost {
    /// Trainable parameters.
    pub parameters: usize,
    /// Tokens per step.
    pub tokens_per_step: usize,
    /// Tokens per second of the median step.
    pub tokens_per_second: f64,
    /// Seconds of the median step.
    pub seconds_per_step: f64,
    /// Peak memory of the process in bytes; `None` if the system does not report it.
    pub peak_memory: Option<u64>,
    /// The loss of the last step. For random tokens it is about `ln(vocab_size)`.
    pub loss: f64,
}

/// Times `steps` steps (forward, backward, clipping, AdamW) of the recipe's model and batch, after one warm-up step.
pub fn bench(recipe: &PretrainRecipe, steps: usize, device: &Device) -> Result<TrainingCost> {
    if steps == 0 {
        return Err(Error::BadRequest("--steps is 0; it must be at least 1".to_owned()));
    }
    let model = Model::init(recipe.model.clone(), Head::LanguageModel, recipe.seed)?.to_device(device)?;
    let mut learner = Learner::new(model, &recipe.optimizer)?;
    if recipe.activation_checkpointing {
        learner.model.checkpoint_activations();
    }
    let (tokens, vocab) = (recipe.batch_size * recipe.seq_len, learner.model.config().vocab_size as u32);
    let mut seconds = Vec::with_capacity(steps);
    let mut last = f64::NAN;
    for step in 0..=steps as u64 {
        let mut random = rng(recipe.seed, 7, step);
        let ids: Vec<u32> = (0..tokens).map(|_| random.random_range(0..vocab)).collect();
        let labels: Vec<i64> = (0..tokens).map(|_| i64::from(random.random_range(0..vocab))).collect();
        let start = Instant::now();
        let hidden = learner.model.hidden(&Batch::from_flat(&ids, recipe.seq_len)?, None)?;
        let loss = learner.model.cross_entropy(&hidden.flatten(0, 1)?, &labels)?;
        learner.backward(&loss)?;
        last = loss::scalar(&loss)?;
        drop((hidden, loss));
        learner.step(recipe.optimizer.learning_rate)?;
        if step > 0 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[steps / 2];
    Ok(TrainingCost {
        parameters: learner.model.count().total(),
        tokens_per_step: tokens,
        tokens_per_second: tokens as f64 / median,
        seconds_per_step: median,
        peak_memory: peak_memory(),
        loss: last,
    })
}

/// Measured cost of fine-tuning.
#[derive(Debug, Clone, Serialize)]
pub struct FinetuningCost {
    /// Trainable parameters.
    pub parameters: usize,
    /// Tokens of all steps.
    pub tokens: usize,
    /// Tokens of all steps that the loss counts.
    pub trained_tokens: usize,
    /// Tokens per second, without the first step.
    pub tokens_per_second: f64,
    /// Mean seconds of a step, without the first one.
    pub seconds_per_step: f64,
    /// Peak memory of the process in bytes; `None` if the system does not report it.
    pub peak_memory: Option<u64>,
    /// The loss of each step.
    pub losses: Vec<f64>,
}

/// Times `steps` steps (at least 2) of a recipe of fine-tuning on the conversations of a file in their order, `batch_size` a step, packed
/// without padding. The same conversations in the same order are easily given to another program.
pub fn bench_finetune(
    recipe: &FinetuneRecipe,
    (model, data): (&Path, &Path),
    steps: usize,
    device: &Device,
) -> Result<FinetuningCost> {
    if steps < 2 {
        return Err(Error::BadRequest(format!("--steps is {steps}; it must be at least 2, as the first is not timed")));
    }
    let inputs = FinetuneInputs {
        model: model.to_owned(),
        data: vec![data.to_owned()],
        validation: None,
        text: None,
        adapter: None,
    };
    let (tokenizer, base, _) = load_finetune(recipe, &inputs)?;
    let examples = read_examples(data, &tokenizer, recipe.max_length)?;
    let batches: Vec<Vec<&Example>> =
        examples.chunks_exact(recipe.batch_size).take(steps).map(|batch| batch.iter().collect()).collect();
    if batches.len() < steps {
        let (needed, has) = (steps * recipe.batch_size, examples.len());
        return Err(Error::BadRequest(format!(
            "{}: {has} conversations of at most {} tokens; {steps} steps need {needed}",
            data.display(),
            recipe.max_length
        )));
    }
    let adapters = Adapters::new(model, recipe.lora.as_ref(), None, recipe.seed);
    let mut learner = Learner::new(adapters.start(&base)?.to_device(device)?, &recipe.optimizer)?;
    if recipe.activation_checkpointing {
        learner.model.checkpoint_activations();
    }
    let (mut seconds, mut losses) = (Vec::with_capacity(steps), Vec::with_capacity(steps));
    for (step, batch) in batches.iter().enumerate() {
        let start = Instant::now();
        losses.push(train_on_answers(recipe, &mut learner, std::slice::from_ref(batch), None, step as u64)?.0);
        learner.step(recipe.optimizer.learning_rate_at(step as u64, steps as u64))?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let count = |batches: &[Vec<&Example>]| batches.iter().flatten().map(|example| example.ids.len()).sum::<usize>();
    let trained = |example: &&Example| example.loss_mask[1..].iter().filter(|&&trained| trained).count();
    let timed = seconds[1..].iter().sum::<f64>();
    Ok(FinetuningCost {
        parameters: learner.model.count().total(),
        tokens: count(&batches),
        trained_tokens: batches.iter().flatten().map(trained).sum(),
        tokens_per_second: count(&batches[1..]) as f64 / timed,
        seconds_per_step: timed / (steps - 1) as f64,
        peak_memory: peak_memory(),
        losses,
    })
}
