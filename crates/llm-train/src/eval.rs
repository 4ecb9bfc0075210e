//! What a model has learnt, in figures.

use std::time::Instant;

use llm_data::TokenDataset;
use llm_data::world::{Probe, PromptKind, Task};
use llm_infer::{GenerateOptions, Sampling, TextModel};
use llm_kernels::IGNORED;
use llm_model::{Batch, Model};
use llm_tokenizer::Tokenizer;
use serde::Serialize;

use crate::Result;
use crate::examples::chat_messages;
use crate::loss::scalar;

/// How well a model predicts a text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TextLoss {
    /// Mean cross-entropy of a token, in nats.
    pub loss: f64,
    /// The same for a byte of the text, in bits: comparable between tokenizers.
    pub bits_per_byte: f64,
}

/// The loss of the data set's text, in windows of `seq_len`; of the first `max_batches` batches (0: all).
pub fn text_loss(
    model: &Model,
    data: &TokenDataset,
    batch_size: usize,
    seq_len: usize,
    max_batches: usize,
) -> Result<TextLoss> {
    let (mut sum, mut count) = (0., 0);
    let limit = if max_batches == 0 { usize::MAX } else { max_batches };
    for (inputs, targets) in llm_data::eval_windows(data, batch_size, seq_len)?.take(limit) {
        let width =
            if inputs.len() < seq_len || !inputs.len().is_multiple_of(seq_len) { inputs.len() } else { seq_len };
        let labels: Vec<i64> = targets.iter().map(|&id| i64::from(id)).collect();
        let hidden = model.hidden(&Batch::from_flat(&inputs, width)?, None)?.flatten(0, 1)?;
        sum += labels.len() as f64 * scalar(&model.cross_entropy(&hidden, &labels)?)?;
        count += labels.len();
    }
    let loss = sum / count.max(1) as f64;
    let tokens_per_byte = data.len() as f64 / (data.bytes() as f64).max(1.);
    Ok(TextLoss { loss, bits_per_byte: loss * tokens_per_byte / std::f64::consts::LN_2 })
}

/// The log-probability of each continuation behind its prefix, in nats. Both are token ids, not empty.
pub fn continuation_logprobs(model: &Model, pairs: &[(Vec<u32>, Vec<u32>)], batch_size: usize) -> Result<Vec<f64>> {
    let mut logprobs = Vec::with_capacity(pairs.len());
    for chunk in pairs.chunks(batch_size.max(1)) {
        let rows: Vec<Vec<u32>> = chunk.iter().map(|(prefix, rest)| [prefix.as_slice(), rest].concat()).collect();
        let batch = Batch::right_padded(&rows, 0)?;
        let width = batch.input_ids.dim(1)?;
        let mut labels = vec![IGNORED; rows.len() * width];
        for (i, (prefix, rest)) in chunk.iter().enumerate() {
            for (t, &id) in rest.iter().enumerate() {
                labels[i * width + prefix.len() + t - 1] = i64::from(id);
            }
        }
        let logits = model.forward(&batch)?.flatten(0, 1)?;
        let losses = llm_kernels::cross_entropy(&logits, &labels)?.to_vec1::<f32>()?;
        logprobs.extend(losses.chunks(width).map(|row| -row.iter().map(|&x| f64::from(x)).sum::<f64>()));
    }
    Ok(logprobs)
}

/// The share of minimal pairs whose right continuation the model finds likelier; a tie counts half.
pub fn probe_accuracy(model: &Model, tokenizer: &Tokenizer, probes: &[Probe]) -> Result<f64> {
    let mut pairs = Vec::with_capacity(2 * probes.len());
    for probe in probes {
        let mut prefix: Vec<u32> = tokenizer.document_end_id().into_iter().collect();
        prefix.extend(tokenizer.encode(&probe.prefix)?);
        pairs.push((prefix.clone(), tokenizer.encode(&probe.good)?));
        pairs.push((prefix, tokenizer.encode(&probe.bad)?));
    }
    let logprobs = continuation_logprobs(model, &pairs, 64)?;
    let right: f64 =
        logprobs.chunks(2).map(|p| if p[0] == p[1] { 0.5 } else { f64::from(u8::from(p[0] > p[1])) }).sum();
    Ok(right / probes.len().max(1) as f64)
}

/// How a model does on tasks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskScores {
    /// Share of right answers.
    pub total: f64,
    /// The same for each kind of prompt.
    pub by_kind: Vec<(PromptKind, f64)>,
    /// Tokens generated in a second.
    pub tokens_per_second: f64,
    /// What it answered, in the order of the tasks.
    pub replies: Vec<String>,
}

/// Asks the model every task, at temperature 0. A model without a chat template gets the prompt as a text to continue.
pub fn task_scores(model: &TextModel, tasks: &[Task]) -> Result<TaskScores> {
    let mut prompts = Vec::with_capacity(tasks.len());
    for task in tasks {
        prompts.push(if model.tokenizer.has_chat_template() {
            model.chat_ids(&chat_messages(&task.messages))?
        } else {
            let text: Vec<&str> = task.messages.iter().map(|m| m.content.as_str()).collect();
            model.document_ids(&text.join("\n"))?
        });
    }
    let options = GenerateOptions {
        max_new_tokens: 48,
        stop_ids: model.stop_ids(),
        sampling: Sampling { temperature: 0., ..Sampling::default() },
    };
    let start = Instant::now();
    let completions = model.complete_all(&prompts, &options, 100, |_| ())?;
    let seconds = start.elapsed().as_secs_f64();
    let right: Vec<bool> = tasks.iter().zip(&completions).map(|(task, c)| task.is_right(&c.text)).collect();
    let share = |kind: Option<PromptKind>| {
        let of_kind = |&(task, _): &(&Task, &bool)| kind.is_none_or(|kind| task.kind == kind);
        let (all, good) =
            tasks.iter().zip(&right).filter(of_kind).fold((0, 0), |(n, g), (_, &r)| (n + 1, g + u32::from(r)));
        f64::from(good) / f64::from(all.max(1))
    };
    Ok(TaskScores {
        total: share(None),
        by_kind: PromptKind::ALL.map(|kind| (kind, share(Some(kind)))).to_vec(),
        tokens_per_second: completions.iter().map(|c| c.tokens).sum::<usize>() as f64 / seconds,
        replies: completions.into_iter().map(|c| c.text).collect(),
    })
}
