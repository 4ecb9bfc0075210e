//! Conversations as token ids with a loss mask.

use candle_core::{Device, Tensor};
use llm_model::{Batch, Model};
use rand::RngExt;

use crate::{Result, loss};

/// A conversation in token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The token ids.
    pub ids: Vec<u32>,
    /// For each id, whether the loss counts it: the assistant's tokens.
    pub loss_mask: Vec<bool>,
}

/// The examples as a batch, the flat positions (`row * t + column`, or in a ragged batch the token) that predict a trained token,
/// and the ids of those tokens (the labels). The batch is right-padded with `pad`, `(b, t)`, or ragged without `pad`, `(1, n)`:
/// then no token is padding, and each example has its own positions and attention. The first token of an example is no label.
pub(crate) fn answer_positions(examples: &[&Example], pad: Option<u32>) -> Result<(Batch, Vec<u32>, Vec<i64>)> {
    let (batch, starts) = rows_to_batch(&examples.iter().map(|e| e.ids.as_slice()).collect::<Vec<_>>(), pad)?;
    let (mut positions, mut labels) = (Vec::new(), Vec::new());
    for (start, example) in starts.into_iter().zip(examples) {
        for t in (1..example.ids.len()).filter(|&t| example.loss_mask[t]) {
            positions.push((start + t - 1) as u32);
            labels.push(i64::from(example.ids[t]));
        }
    }
    Ok((batch, positions, labels))
}

/// Rows as a batch, and the flat position of the first token of each row: right-padded with `pad`, or ragged without it.
pub(crate) fn rows_to_batch(rows: &[&[u32]], pad: Option<u32>) -> Result<(Batch, Vec<usize>)> {
    let Some(pad) = pad else {
        let starts = rows.iter().scan(0, |next, row| Some(std::mem::replace(next, *next + row.len())));
        return Ok((Batch::ragged(rows, &vec![0; rows.len()])?, starts.collect()));
    };
    let batch = Batch::right_padded(&rows.iter().map(|row| row.to_vec()).collect::<Vec<_>>(), pad)?;
    let width = batch.input_ids.dim(1)?;
    Ok((batch, (0..rows.len()).map(|row| row * width).collect()))
}

/// The hidden states that predict the trained tokens, `(n, hidden)`, and the ids of those tokens.
pub fn answer_states(model: &Model, examples: &[&Example], pad: u32) -> Result<(Tensor, Vec<i64>)> {
    let (batch, positions, labels) = answer_positions(examples, Some(pad))?;
    Ok((gather_rows(&model.hidden(&batch, None)?, positions)?, labels))
}

/// Noise for the embeddings of a batch of [`answer_positions`]: uniform from `-alpha / √(L·d)` to `alpha / √(L·d)` for an example of L
/// tokens and embeddings of d values, 0 for padding. `NEFTune`, Jain et al. 2023, arXiv 2310.05914, algorithm 1.
pub(crate) fn embedding_noise(
    batch: &Batch,
    examples: &[&Example],
    alpha: f64,
    hidden_size: usize,
    rng: &mut impl RngExt,
) -> Result<Tensor> {
    let (b, t) = batch.input_ids.dims2()?;
    let mut noise = Vec::with_capacity(b * t * hidden_size);
    for example in examples {
        let bound = (alpha / ((example.ids.len() * hidden_size) as f64).sqrt()) as f32;
        noise.extend((0..example.ids.len() * hidden_size).map(|_| (rng.random::<f32>() * 2. - 1.) * bound));
        if batch.row_lens.is_none() {
            noise.resize(noise.len() + (t - example.ids.len()) * hidden_size, 0.);
        }
    }
    Ok(Tensor::from_vec(noise, (b * t, hidden_size), &Device::Cpu)?)
}

/// The share of each micro-batch in the trained tokens of a step: with these weights of the mean losses of the micro-batches, every
/// trained token has the same weight.
pub(crate) fn token_shares(micro: &[Vec<&Example>]) -> Vec<f64> {
    let trained = |example: &&Example| example.loss_mask[1..].iter().filter(|&&trained| trained).count();
    let counts: Vec<usize> = micro.iter().map(|examples| examples.iter().map(trained).sum()).collect();
    let all: usize = counts.iter().sum();
    counts.into_iter().map(|count| count as f64 / all.max(1) as f64).collect()
}

/// The rows of `hidden` `(b, t, hidden)` at these flat positions: `(n, hidden)`.
pub(crate) fn gather_rows(hidden: &Tensor, positions: Vec<u32>) -> Result<Tensor> {
    let n = positions.len();
    Ok(hidden.flatten(0, 1)?.index_select(&Tensor::from_vec(positions, n, hidden.device())?, 0)?)
}

/// The mean cross-entropy over the trained tokens of all examples, in nats.
pub fn answer_loss(model: &Model, examples: &[Example], batch_size: usize, pad: u32) -> Result<f64> {
    let (mut sum, mut count) = (0., 0);
    for chunk in examples.chunks(batch_size) {
        let (hidden, labels) = answer_states(model, &chunk.iter().collect::<Vec<_>>(), pad)?;
        sum += labels.len() as f64 * loss::scalar(&loss::next_token(model, &hidden, &labels)?)?;
        count += labels.len();
    }
    Ok(sum / count.max(1) as f64)
}

/// At most `most` items (0: all), evenly spaced.
pub(crate) fn take_evenly<T>(items: Vec<T>, most: usize) -> Vec<T> {
    let all = items.len();
    if most == 0 || all <= most {
        return items;
    }
    let is_taken = |i: usize| i * most / all != (i + 1) * most / all;
    items.into_iter().enumerate().filter(|&(i, _)| is_taken(i)).map(|(_, item)| item).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use candle_core::DType;
    use llm_model::{Head, LoraConfig, ModelConfig, ModelType};

    use super::*;
    use crate::optim::{Learner, OptimizerConfig};

    fn example(ids: std::ops::Range<u32>, prompt: usize) -> Example {
        let loss_mask = (0..ids.len()).map(|i| i >= prompt).collect();
        Example { ids: ids.collect(), loss_mask }
    }

    /// Two micro-batches, of 1 token with loss 4 and of 3 tokens with loss 2: the mean over tokens is 2.5. The mean of the two means
    /// would be 3.
    #[test]
    fn every_trained_token_of_a_step_has_the_same_weight() {
        let (one, two, three) = (example(0..5, 4), example(3..6, 2), example(7..10, 1));
        let shares = token_shares(&[vec![&one], vec![&two, &three]]);
        assert_eq!(shares, [0.25, 0.75]);
        assert_eq!(4. * shares[0] + 2. * shares[1], 2.5);
        // The first token of an example is not predicted, even if it is marked.
        assert_eq!(token_shares(&[vec![&example(0..4, 0)], vec![&one]]), [0.75, 0.25]);
    }

    const KINDS: [&str; 3] = ["full attention", "sliding window", "adapter"];

    fn learner(kind: &str) -> Learner {
        let config = ModelConfig {
            vocab_size: 40,
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            initializer_range: 0.3,
            ..ModelConfig::default()
        };
        let config = match kind {
            "sliding window" => ModelConfig { model_type: ModelType::Mistral, sliding_window: Some(6), ..config },
            _ => config,
        };
        let model = Model::init(config, Head::LanguageModel, 3).unwrap();
        let lora = LoraConfig { r: 4, ..LoraConfig::default() };
        let model = if kind == "adapter" { model.with_lora(&lora, 1).unwrap() } else { model };
        Learner::new(model, &OptimizerConfig::default()).unwrap()
    }

    /// The gradients of the mean loss over the trained tokens of all batches.
    fn gradients(kind: &str, batches: &[Vec<&Example>], pad: Option<u32>) -> BTreeMap<String, Vec<f64>> {
        let mut learner = learner(kind);
        for (examples, share) in batches.iter().zip(token_shares(batches)) {
            let (batch, positions, labels) = answer_positions(examples, pad).unwrap();
            let hidden = gather_rows(&learner.model.hidden(&batch, None).unwrap(), positions).unwrap();
            let loss = (loss::next_token(&learner.model, &hidden, &labels).unwrap() * share).unwrap();
            learner.backward(&loss).unwrap();
        }
        let flat = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        learner.gradients().iter().map(|(name, gradient)| (name.clone(), flat(gradient))).collect()
    }

    /// The bounds of the paper's formula for alpha 5, 9 values and examples of 4 and 2 tokens: a packed batch has those of each
    /// example, not of 6 tokens.
    #[test]
    fn noise_has_the_bound_of_each_example_and_padding_has_none() {
        let (four, two) = (example(0..4, 1), example(5..7, 1));
        let examples = [&four, &two];
        for pad in [None, Some(0)] {
            let (batch, ..) = answer_positions(&examples, pad).unwrap();
            let noise = embedding_noise(&batch, &examples, 5., 9, &mut crate::run::rng(1, 5, 0)).unwrap();
            let again = embedding_noise(&batch, &examples, 5., 9, &mut crate::run::rng(1, 5, 0)).unwrap();
            let (noise, again) = (noise.to_vec2::<f32>().unwrap(), again.to_vec2::<f32>().unwrap());
            assert_eq!(noise, again);
            let largest = |rows: &[Vec<f32>]| rows.concat().iter().fold(0f32, |most, x| most.max(x.abs()));
            let bounds = [(&noise[..4], 5. / 6.), (&noise[4..6], 5. / 18f32.sqrt())];
            for (rows, bound) in bounds {
                assert!(largest(rows) <= bound && largest(rows) > 0.8 * bound, "{} of {bound}", largest(rows));
            }
            assert_eq!(largest(&noise[6..]), 0.);
            assert_eq!(noise.len(), if pad.is_some() { 8 } else { 6 });
        }
    }

    #[test]
    fn noise_is_added_to_the_embeddings() {
        let (learner, one) = (learner("full attention"), example(3..9, 1));
        let (mut batch, ..) = answer_positions(&[&one], None).unwrap();
        let hidden =
            |batch: &Batch| learner.model.hidden(batch, None).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let plain = hidden(&batch);
        // The noise that turns each embedding into that of the next token.
        let table = &learner.model.params().tensors()["model.embed_tokens.weight"];
        batch.embedding_noise =
            Some((table.narrow(0, 4, 6).unwrap() - table.narrow(0, 3, 6).unwrap()).unwrap().detach());
        let shifted = answer_positions(&[&example(4..10, 1)], None).unwrap().0;
        let gap = hidden(&batch).iter().zip(hidden(&shifted)).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
        assert!(gap < 1e-4 && hidden(&batch) != plain, "{gap}");
    }

    #[test]
    fn packed_examples_have_the_gradient_that_they_have_alone() {
        let examples = [example(0..13, 6), example(5..8, 1), example(20..40, 3), example(9..15, 4), example(2..4, 1)];
        let all: Vec<&Example> = examples.iter().collect();
        let alone: Vec<Vec<&Example>> = all.iter().map(|&example| vec![example]).collect();
        for kind in KINDS {
            let expected = gradients(kind, &alone, Some(0));
            for (what, batches, pad) in [
                ("one pack", vec![all.clone()], None),
                ("two packs", vec![all[..2].to_vec(), all[2..].to_vec()], None),
                ("padded", vec![all.clone()], Some(0)),
            ] {
                let found = gradients(kind, &batches, pad);
                assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
                for (name, expected) in &expected {
                    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
                    let gap = norm(&mut found[name].iter().zip(expected).map(|(a, b)| a - b));
                    let size = norm(&mut expected.iter().copied());
                    // Sums of f32 in another order.
                    assert!(gap <= 1e-5 * size, "{what}, {kind}, {name}: {gap} of {size}");
                }
            }
            // Negative control: one example that contains all tokens has another gradient.
            let joined = Example {
                ids: all.iter().flat_map(|e| e.ids.clone()).collect(),
                loss_mask: all.iter().flat_map(|e| e.loss_mask.clone()).collect(),
            };
            let leaky = gradients(kind, &[vec![&joined]], None);
            let differs = |(name, expected): (&String, &Vec<f64>)| {
                leaky[name].iter().zip(expected).any(|(a, b)| (a - b).abs() > 0.01 * b.abs().max(0.01))
            };
            assert!(expected.iter().any(differs));
        }
    }

    #[test]
    fn items_are_taken_evenly() {
        for (all, most) in [(10, 3), (7, 7), (100, 33), (5, 9), (5, 0)] {
            let part = take_evenly((0..all).collect(), most);
            assert_eq!(part.len(), if most == 0 { all } else { most.min(all) });
            let gaps: Vec<usize> = part.windows(2).map(|w| w[1] - w[0]).collect();
            assert!(gaps.iter().all(|&gap| gap >= 1 && gap <= all.div_ceil(most.max(1))), "{part:?}");
        }
    }
}
