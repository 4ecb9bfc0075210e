//! Instruction fine-tuning: the assistant's words of conversations, and nothing else, are learnt.

use std::path::Path;

use llm_model::Head;
use llm_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};

use super::{load_model, pad_id};
use crate::examples::{Example, LengthBatches, answer_loss, answer_places, pick_rows, train_and_held_out};
use crate::optim::OptimizerConfig;
use crate::routing::RouterLog;
use crate::run::{Run, RunOptions, learner};
use crate::{Result, loss};

/// The numbers of a fine-tuning run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FinetuneRecipe {
    /// Seed of the order of the conversations.
    pub seed: u64,
    /// Passes over the conversations.
    pub epochs: u64,
    /// Conversations of a micro-batch.
    pub batch_size: usize,
    /// Micro-batches for each step.
    pub gradient_accumulation_steps: u64,
    /// Whether blocks run again in the backward instead of keeping their activations: less memory, a third more work.
    pub activation_checkpointing: bool,
    /// Longer conversations, in tokens, are left out.
    pub max_length: usize,
    /// Steps between two evaluations on held-out conversations.
    pub eval_every: u64,
    /// Steps between two checkpoints.
    pub save_every: u64,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
}

impl Default for FinetuneRecipe {
    fn default() -> Self {
        let optimizer = OptimizerConfig { learning_rate: 5e-4, weight_decay: 0.01, ..OptimizerConfig::default() };
        Self {
            seed: 42,
            epochs: 3,
            batch_size: 32,
            gradient_accumulation_steps: 1,
            activation_checkpointing: false,
            max_length: 512,
            eval_every: 100,
            save_every: 100,
            optimizer,
        }
    }
}

/// What [`finetune`] reads.
#[derive(Debug, Clone, Copy)]
pub struct FinetuneInputs<'a> {
    /// The folder of the model to start from.
    pub model: &'a Path,
    /// Conversations to learn from.
    pub data: &'a Path,
    /// Conversations to test on; none: a twentieth of `data`.
    pub held_out: Option<&'a Path>,
}

/// Fine-tunes a model on conversations; the run folder `out` becomes its Hugging Face folder.
pub fn finetune(recipe: &FinetuneRecipe, inputs: FinetuneInputs, out: &Path, options: RunOptions) -> Result<()> {
    let mut tokenizer = Tokenizer::from_dir(inputs.model)?;
    if !tokenizer.has_chat_template() {
        tokenizer = tokenizer.with_default_chat_template()?;
    }
    let pad = pad_id(&tokenizer, inputs.model)?;
    let base = load_model(inputs.model, Head::LanguageModel)?;
    let max_length = recipe.max_length.min(base.config().max_position_embeddings);
    let (train, held_out) = train_and_held_out(inputs.data, inputs.held_out, &tokenizer, max_length)?;
    let mut shown = vec![("model", inputs.model.display().to_string()), ("data", inputs.data.display().to_string())];
    shown.extend(inputs.held_out.map(|path| ("held_out", path.display().to_string())));
    let (mut run, checkpoint) = Run::open(out, recipe, &shown, options)?;
    let mut learner = learner(checkpoint.as_ref(), &recipe.optimizer, || {
        let mut model = base.trainable()?;
        model.set_eos_token_id(tokenizer.end_of_turn_id());
        Ok(model)
    })?;
    if recipe.activation_checkpointing {
        learner.model.checkpoint_activations();
    }
    let mut batches = LengthBatches::new(train.iter().map(|e| e.ids.len()).collect(), recipe.batch_size, recipe.seed)?;
    let micro_batches = recipe.gradient_accumulation_steps.max(1);
    let steps = (batches.per_epoch() * recipe.epochs).div_ceil(micro_batches);
    let first = checkpoint.map_or(0, |c| c.step);
    run.begin(steps, first, "steps");

    for step in first..steps {
        if step == 0 {
            let eval_loss = answer_loss(&learner.model.frozen()?, &held_out, recipe.batch_size, pad)?;
            run.log(0, &[("eval_loss", eval_loss)])?;
        }
        let micro: Vec<Vec<&Example>> = (0..micro_batches)
            .map(|m| batches.batch(step * micro_batches + m).into_iter().map(|i| &train[i]).collect())
            .collect();
        // Each learnt token weighs the same, whichever micro-batch it is in.
        let tokens = micro.iter().flatten().map(|e| e.learnt[1..].iter().filter(|&&l| l).count()).sum::<usize>();
        let (mut mean_loss, mut routers) = (0., RouterLog::default());
        for examples in &micro {
            let (batch, places, labels) = answer_places(examples, pad)?;
            let (hidden, routing) = learner.model.hidden_and_routing(&batch)?; // (b, t, hidden)
            let hidden = pick_rows(&hidden, places)?; // (n, hidden)
            let share = labels.len() as f64 / tokens as f64;
            let loss = (learner.model.cross_entropy(&hidden, &labels)? * share)?;
            mean_loss += loss::scalar(&loss)?;
            learner.backward(&routers.add(&loss, routing.as_ref(), share)?)?;
        }
        let learning_rate = recipe.optimizer.learning_rate_at(step, steps);
        let grad_norm = learner.step(learning_rate)?;
        let done = step + 1;
        run.check_finite(done, &[("loss", mean_loss), ("grad_norm", grad_norm)])?;
        let figures = [("loss", mean_loss), ("grad_norm", grad_norm), ("learning_rate", learning_rate)];
        run.log_with(done, &figures, routers.figures())?;
        run.progress(done, &format!("loss {mean_loss:.3}"));
        if done.is_multiple_of(recipe.eval_every) || done == steps {
            let eval_loss = answer_loss(&learner.model.frozen()?, &held_out, recipe.batch_size, pad)?;
            run.log(done, &[("eval_loss", eval_loss)])?;
            tracing::info!("step {done}: held-out loss of the answers {eval_loss:.4}");
        }
        if done.is_multiple_of(recipe.save_every) {
            run.checkpoint_of(done, &learner, &tokenizer)?;
        }
    }
    run.finish(steps, |dir| {
        tokenizer.save(dir)?;
        Ok(learner.model.save(dir)?)
    })
}
