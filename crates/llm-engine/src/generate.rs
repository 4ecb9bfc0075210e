//! Batched generation with a KV cache: prefill of the prompts as a ragged batch, then one decode step per token.

use candle_core::{DType, Tensor};
use llm_model::{Batch, Head, KvCache, Model};

use crate::{Error, Result, Sampler, Sampling};

/// Options of generation.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// Maximum number of tokens to generate for each prompt.
    pub max_new_tokens: usize,
    /// A row ends after any of these token ids; the id is part of the result. None: the end tokens of the model
    /// ([`Model::eos_token_ids`]) and, in functions of [`crate::TextModel`], of its tokenizer.
    pub stop_ids: Option<Vec<u32>>,
    /// Sampling parameters.
    pub sampling: Sampling,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { max_new_tokens: 128, stop_ids: None, sampling: Sampling::default() }
    }
}

/// Continues each prompt. The result has only the new tokens of each row, including the stop id.
///
/// `on_token(row, id)` is called for each token; it returns `false` to end the row. Each row has its own random stream, so
/// its reply does not depend on the other rows. A row also ends when its prompt and reply reach
/// `max_position_embeddings`. Without a seed each call gives other replies. An empty prompt, or a prompt of `max_position_embeddings` tokens or more, is an error.
pub fn generate(
    model: &Model,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    on_token: impl FnMut(usize, u32) -> bool,
) -> Result<Vec<Vec<u32>>> {
    generate_from(model, prompts, 0, options, on_token)
}

/// [`generate`] for one batch of a longer list of prompts, starting at `first_row`: row i uses the random stream of row
/// `first_row + i`, so the batch size does not change the replies.
pub fn generate_from(
    model: &Model,
    prompts: &[Vec<u32>],
    first_row: usize,
    options: &GenerateOptions,
    mut on_token: impl FnMut(usize, u32) -> bool,
) -> Result<Vec<Vec<u32>>> {
    options.sampling.validate(model.config().vocab_size)?;
    if model.head() != Head::LanguageModel {
        return Err(Error::NotALanguageModel);
    }
    let width = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let context_length = model.config().max_position_embeddings;
    if prompts.iter().any(Vec::is_empty) {
        return Err(Error::EmptyPrompt);
    }
    if width >= context_length {
        return Err(Error::PromptTooLong { tokens: width, context_length });
    }
    let stop_ids = options.stop_ids.clone().unwrap_or_else(|| model.eos_token_ids());
    let mut replies = vec![Vec::new(); prompts.len()];
    let shortest = prompts.iter().map(Vec::len).min().unwrap_or(0);
    let steps = options.max_new_tokens.min(context_length - shortest);
    if prompts.is_empty() || steps == 0 {
        return Ok(replies);
    }
    let (sampling, vocab) = (options.sampling.clone().seeded(), model.config().vocab_size);
    let sampler = |(row, prompt): (usize, &Vec<u32>)| {
        Sampler::new(&sampling, vocab, first_row + row).with_end_ids(&stop_ids).with_prompt(prompt)
    };
    let mut samplers: Vec<Sampler> = prompts.iter().enumerate().map(sampler).collect();
    let mut active = vec![true; prompts.len()];
    let capacity = prompts.iter().map(|prompt| (prompt.len() + steps).min(context_length)).max().unwrap_or(0);
    let mut cache = KvCache::new(model.config(), prompts.len(), capacity, &model.device())?;
    for step in 0..steps {
        let logits = match step {
            0 => {
                let _span = tracing::debug_span!("prefill", rows = prompts.len()).entered();
                last_logits(model, prompts, &mut cache)?
            }
            _ => {
                let _span = tracing::trace_span!("decode", step).entered();
                // The last token of each active row; the others have none.
                let last = |(reply, active): (&Vec<u32>, &bool)| reply[reply.len() - usize::from(*active)..].to_vec();
                let next: Vec<Vec<u32>> = replies.iter().zip(&active).map(last).collect();
                llm_kernels::spin_workers(|| last_logits(model, &next, &mut cache))?
            }
        }; // (active rows, vocab)
        let mut logits = logits.flatten_all()?.to_vec1::<f32>()?;
        for (row, logits) in (0..prompts.len()).filter(|&row| active[row]).zip(logits.chunks_exact_mut(vocab)) {
            replies[row].push(samplers[row].next(logits, step, None)?.id);
        }
        for row in (0..prompts.len()).filter(|&row| active[row]).collect::<Vec<_>>() {
            let id = replies[row][replies[row].len() - 1];
            active[row] = on_token(row, id) && !stop_ids.contains(&id);
            active[row] &= prompts[row].len() + replies[row].len() < context_length;
        }
        if !active.contains(&true) {
            break;
        }
    }
    Ok(replies)
}

/// Runs the model on the next tokens of each row: the logits `(rows, vocab)` after the last token of each row that has one.
fn last_logits(model: &Model, rows: &[Vec<u32>], cache: &mut KvCache) -> Result<Tensor> {
    let hidden = model.hidden(&Batch::ragged(rows, cache.lens())?, Some(cache))?.squeeze(0)?; // (n, hidden)
    let ends = rows.iter().filter(|row| !row.is_empty()).scan(0, |end, row| {
        *end += row.len() as u32;
        Some(*end - 1)
    });
    let ends = ends.collect::<Vec<_>>();
    let last = hidden.index_select(&Tensor::from_slice(&ends, ends.len(), hidden.device())?, 0)?;
    Ok(model.output(&last)?.to_dtype(DType::F32)?)
}

#[cfg(test)]
mod tests {
    use llm_model::ModelConfig;

    use super::*;

    fn model() -> Model {
        let config = ModelConfig {
            vocab_size: 40,
            hidden_size: 32,
            intermediate_size: 48,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            max_position_embeddings: 64,
            initializer_range: 0.4, // large, so that an error changes the sampled token
            ..ModelConfig::default()
        };
        Model::init(config, Head::LanguageModel, 7).unwrap().frozen().unwrap()
    }

    fn greedy(max_new_tokens: usize) -> GenerateOptions {
        let sampling = Sampling { temperature: 0., seed: Some(42), ..Sampling::default() };
        GenerateOptions { max_new_tokens, sampling, ..GenerateOptions::default() }
    }

    /// Reference without cache: runs the whole sequence for each token.
    fn without_cache(model: &Model, prompt: &[u32], options: &GenerateOptions) -> Vec<u32> {
        let mut ids = prompt.to_vec();
        let mut sampler = Sampler::new(&options.sampling, model.config().vocab_size, 0);
        for position in 0..options.max_new_tokens {
            let logits = model.forward(&Batch::new(&[ids.clone()]).unwrap()).unwrap();
            let mut last = logits.get(0).unwrap().get(ids.len() - 1).unwrap().to_vec1::<f32>().unwrap();
            ids.push(sampler.next(&mut last, position, None).unwrap().id);
        }
        ids[prompt.len()..].to_vec()
    }

    #[test]
    fn generation_with_and_without_cache_is_equal() {
        let model = model();
        for temperature in [0., 0.8, 1.5] {
            let mut options = greedy(30);
            options.sampling.temperature = temperature;
            let prompt = vec![3, 14, 15, 9, 26];
            let cached = generate(&model, std::slice::from_ref(&prompt), &options, |_, _| true).unwrap();
            assert_eq!(cached[0], without_cache(&model, &prompt, &options), "temperature {temperature}");
        }
    }

    #[test]
    fn a_batch_gives_the_reply_of_each_prompt_alone() {
        let model = model();
        let prompts = vec![vec![1], vec![2, 3, 4, 5, 6, 7], vec![9, 8, 7]];
        let together = generate(&model, &prompts, &greedy(12), |_, _| true).unwrap();
        for (prompt, reply) in prompts.iter().zip(together) {
            assert_eq!(without_cache(&model, prompt, &greedy(12)), reply);
        }
    }

    #[test]
    fn the_batch_size_does_not_change_the_replies() {
        let model = model();
        let prompts = vec![vec![5, 6]; 7];
        let sampling = Sampling { seed: Some(42), ..Sampling::default() };
        let options = GenerateOptions { max_new_tokens: 6, sampling, ..GenerateOptions::default() };
        let whole = generate(&model, &prompts, &options, |_, _| true).unwrap();
        let mut parts = Vec::new();
        for (i, part) in prompts.chunks(3).enumerate() {
            parts.extend(generate_from(&model, part, 3 * i, &options, |_, _| true).unwrap());
        }
        assert_eq!(parts, whole);
        assert!(whole.iter().any(|reply| *reply != whole[0]), "rows must differ");
    }

    #[test]
    fn without_stop_ids_a_row_ends_at_the_end_tokens_of_the_model() {
        let mut model = model();
        let prompts = [vec![1], vec![2, 3, 4]];
        let free = generate(&model, &prompts, &greedy(10), |_, _| true).unwrap();
        model.set_end_of_turn(free[0][4]);
        model.set_end_of_turn(free[1][2]);
        let ended = generate(&model, &prompts, &greedy(10), |_, _| true).unwrap();
        for (free, ended) in free.iter().zip(&ended) {
            let stops = model.eos_token_ids();
            let end = free.iter().position(|id| stops.contains(id)).unwrap() + 1;
            assert!(end < 10 && *ended == free[..end]);
        }
        let all = GenerateOptions { stop_ids: Some(Vec::new()), ..greedy(10) };
        assert_eq!(generate(&model, &prompts, &all, |_, _| true).unwrap(), free);
    }

    #[test]
    fn a_row_ends_at_its_stop_id_and_other_rows_continue() {
        let model = model();
        let prompts = vec![vec![1], vec![2, 3, 4]];
        let free = generate(&model, &prompts, &greedy(10), |_, _| true).unwrap();
        let stop = free[0][4];
        let options = GenerateOptions { stop_ids: Some(vec![stop]), ..greedy(10) };
        let stopped = generate(&model, &prompts, &options, |_, _| true).unwrap();
        for (free, stopped) in free.iter().zip(stopped) {
            let end = free.iter().position(|&id| id == stop).map_or(10, |at| at + 1);
            assert_eq!(free[..end], stopped);
        }
        let mut tokens = 0;
        let one = generate(&model, &prompts[..1], &greedy(10), |_, _| {
            tokens += 1;
            tokens < 3
        })
        .unwrap();
        assert_eq!(one[0].len(), 3);
    }

    #[test]
    fn a_long_prompt_does_not_shorten_other_replies() {
        // GPT-2 has learned positions, so a position past the end is an error.
        let gpt2 = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../llm-model/tests/golden/families/gpt2");
        for model in [model(), Model::load(&gpt2).unwrap()] {
            let (context_length, vocab) = (model.config().max_position_embeddings, model.config().vocab_size as u32);
            let prompts = vec![(0..context_length as u32 - 4).map(|i| i % vocab).collect::<Vec<u32>>(), vec![2, 3, 4]];
            let together = generate(&model, &prompts, &greedy(30), |_, _| true).unwrap();
            for (prompt, (reply, tokens)) in prompts.iter().zip(together.iter().zip([4, 30])) {
                assert_eq!(reply.len(), tokens);
                assert_eq!(
                    generate(&model, std::slice::from_ref(prompt), &greedy(30), |_, _| true).unwrap()[0],
                    *reply
                );
            }
        }
    }

    #[test]
    fn generation_ends_at_the_context_length() {
        let model = model();
        assert_eq!(generate(&model, &[vec![1; 60]], &greedy(100), |_, _| true).unwrap()[0].len(), 4);
        let error = generate(&model, &[vec![1; 64]], &greedy(1), |_, _| true).unwrap_err();
        assert!(matches!(error, Error::PromptTooLong { tokens: 64, context_length: 64 }), "{error}");
        assert!(error.is_callers_fault());
        let error = generate(&model, &[vec![]], &greedy(1), |_, _| true).unwrap_err();
        assert!(matches!(error, Error::EmptyPrompt), "{error}");
    }
}
