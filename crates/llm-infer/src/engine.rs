//! Generation for a batch of prompts, with a cache of keys and values.

use candle_core::{D, DType, Tensor};
use llm_model::{Batch, Head, KvCache, Model};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::{Error, Result, Sampling, sample};

/// How long to generate, and how to choose.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// At most so many tokens for each prompt.
    pub max_new_tokens: usize,
    /// A row ends behind any of these; the id itself is part of the result.
    pub stop_ids: Vec<u32>,
    /// How each token is chosen.
    pub sampling: Sampling,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { max_new_tokens: 128, stop_ids: Vec::new(), sampling: Sampling::default() }
    }
}

/// Continues each prompt; the result holds the new tokens only, with the stop id if one came.
///
/// `on_token(row, id)` hears of each token; `false` ends that row. Each row draws from its own random stream, so its
/// text does not depend on the other rows of the batch. A row ends early where its prompt and reply use up the model's
/// `max_position_embeddings`, however long the other rows are; an empty prompt, or one that leaves no room, is an error.
pub fn generate(
    model: &Model,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    on_token: impl FnMut(usize, u32) -> bool,
) -> Result<Vec<Vec<u32>>> {
    generate_from(model, prompts, 0, options, on_token)
}

/// [`generate`] for a part of a longer list of prompts that begins at `first_row`: row i draws from the random stream
/// of row `first_row + i`, so that a list in batches of any size has the replies of the whole list.
pub fn generate_from(
    model: &Model,
    prompts: &[Vec<u32>],
    first_row: usize,
    options: &GenerateOptions,
    mut on_token: impl FnMut(usize, u32) -> bool,
) -> Result<Vec<Vec<u32>>> {
    options.sampling.validate()?;
    if model.head() != Head::LanguageModel {
        return Err(Error::Input(
            "this model scores texts and cannot generate; use a causal language model".to_owned(),
        ));
    }
    let width = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let room = model.config().max_position_embeddings;
    if prompts.iter().any(Vec::is_empty) {
        return Err(Error::Input("a prompt is empty; give at least one token".to_owned()));
    }
    if width >= room {
        return Err(Error::Input(format!(
            "the prompt has {width} tokens, the model takes fewer than {room}; shorten it"
        )));
    }
    let mut replies = vec![Vec::new(); prompts.len()];
    let shortest = prompts.iter().map(Vec::len).min().unwrap_or(0);
    let steps = options.max_new_tokens.min(room - shortest);
    if prompts.is_empty() || steps == 0 {
        return Ok(replies);
    }
    let rows = first_row..first_row + prompts.len();
    let mut streams: Vec<ChaCha8Rng> = rows.map(|row| stream(options.sampling.seed, row)).collect();
    let mut open = vec![true; prompts.len()];
    let padding: Vec<u32> = prompts.iter().map(|p| (width - p.len()) as u32).collect();
    let filler = model.config().pad_token_id.unwrap_or(0);
    let mut cache = KvCache::new(model.config(), prompts.len(), width + steps)?;
    let mut batch = Batch::left_padded(prompts, filler)?;
    for step in 0..steps {
        let logits = match step {
            0 => read(model, &batch, &mut cache)?,
            _ => llm_kernels::spin_workers(|| read(model, &batch, &mut cache))?, // (b, vocab)
        };
        let vocab = logits.dim(D::Minus1)?;
        let logits = logits.flatten_all()?.to_vec1::<f32>()?;
        let mut next = vec![filler; prompts.len()];
        for row in (0..prompts.len()).filter(|&row| open[row]) {
            let id = sample(&logits[row * vocab..(row + 1) * vocab], &options.sampling, &mut streams[row])?;
            next[row] = id;
            replies[row].push(id);
        }
        for row in 0..prompts.len() {
            open[row] = open[row] && on_token(row, next[row]) && !options.stop_ids.contains(&next[row]);
            open[row] &= prompts[row].len() + replies[row].len() < room;
        }
        if step + 1 == steps || !open.contains(&true) {
            break;
        }
        batch = Batch::step(&next, cache.len(), &padding)?;
        // Rows that have ended go through the model beside the others; there are no positions after the last one.
        batch.positions.iter_mut().for_each(|position| *position = (*position).min(room as u32 - 1));
    }
    Ok(replies)
}

/// The logits `(b, vocab)` behind the last token of each row.
fn read(model: &Model, batch: &Batch, cache: &mut KvCache) -> Result<Tensor> {
    let hidden = model.hidden(batch, Some(cache))?; // (b, t, hidden)
    let last = hidden.narrow(1, hidden.dim(1)? - 1, 1)?.squeeze(1)?.contiguous()?;
    Ok(model.output(&last)?.to_dtype(DType::F32)?)
}

fn stream(seed: u64, row: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(row as u64);
    rng
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
            initializer_range: 0.4, // far from uniform, so that an error would change the choice
            ..ModelConfig::default()
        };
        Model::init(config, Head::LanguageModel, 7).unwrap().frozen().unwrap()
    }

    fn greedy(max_new_tokens: usize) -> GenerateOptions {
        let sampling = Sampling { temperature: 0., ..Sampling::default() };
        GenerateOptions { max_new_tokens, sampling, ..GenerateOptions::default() }
    }

    /// The whole text through the model for each token.
    fn without_cache(model: &Model, prompt: &[u32], options: &GenerateOptions) -> Vec<u32> {
        let (mut ids, mut rng) = (prompt.to_vec(), stream(options.sampling.seed, 0));
        for _ in 0..options.max_new_tokens {
            let logits = model.forward(&Batch::new(&[ids.clone()]).unwrap()).unwrap();
            let last = logits.get(0).unwrap().get(ids.len() - 1).unwrap().to_vec1::<f32>().unwrap();
            ids.push(sample(&last, &options.sampling, &mut rng).unwrap());
        }
        ids[prompt.len()..].to_vec()
    }

    #[test]
    fn the_cache_changes_no_token() {
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
    fn a_batch_says_what_each_prompt_alone_would() {
        let model = model();
        let prompts = vec![vec![1], vec![2, 3, 4, 5, 6, 7], vec![9, 8, 7]];
        let together = generate(&model, &prompts, &greedy(12), |_, _| true).unwrap();
        for (prompt, reply) in prompts.iter().zip(together) {
            assert_eq!(without_cache(&model, prompt, &greedy(12)), reply);
        }
    }

    #[test]
    fn a_list_in_batches_has_the_replies_of_the_whole_list() {
        let model = model();
        let prompts = vec![vec![5, 6]; 7];
        let options = GenerateOptions { max_new_tokens: 6, ..GenerateOptions::default() };
        let whole = generate(&model, &prompts, &options, |_, _| true).unwrap();
        let mut parts = Vec::new();
        for (i, part) in prompts.chunks(3).enumerate() {
            parts.extend(generate_from(&model, part, 3 * i, &options, |_, _| true).unwrap());
        }
        assert_eq!(parts, whole);
        assert!(whole.iter().any(|reply| *reply != whole[0]), "rows must differ");
    }

    #[test]
    fn a_row_ends_at_its_stop_id_and_the_others_go_on() {
        let model = model();
        let prompts = vec![vec![1], vec![2, 3, 4]];
        let free = generate(&model, &prompts, &greedy(10), |_, _| true).unwrap();
        let stop = free[0][4];
        let options = GenerateOptions { stop_ids: vec![stop], ..greedy(10) };
        let stopped = generate(&model, &prompts, &options, |_, _| true).unwrap();
        for (free, stopped) in free.iter().zip(stopped) {
            let end = free.iter().position(|&id| id == stop).map_or(10, |at| at + 1);
            assert_eq!(free[..end], stopped);
        }
        let mut heard = 0;
        let one = generate(&model, &prompts[..1], &greedy(10), |_, _| {
            heard += 1;
            heard < 3
        })
        .unwrap();
        assert_eq!(one[0].len(), 3);
    }

    #[test]
    fn a_long_prompt_leaves_the_rows_beside_it_their_room() {
        // GPT-2 has a row for each position and none after the last.
        let gpt2 = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../llm-model/tests/golden/families/gpt2");
        for model in [model(), Model::load(&gpt2).unwrap()] {
            let (room, vocab) = (model.config().max_position_embeddings, model.config().vocab_size as u32);
            let prompts = vec![(0..room as u32 - 4).map(|i| i % vocab).collect::<Vec<u32>>(), vec![2, 3, 4]];
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
    fn generation_ends_where_the_positions_end() {
        let model = model();
        assert_eq!(generate(&model, &[vec![1; 60]], &greedy(100), |_, _| true).unwrap()[0].len(), 4);
        let message = generate(&model, &[vec![1; 64]], &greedy(1), |_, _| true).unwrap_err().to_string();
        assert!(message.contains("64 tokens"), "{message}");
        assert!(generate(&model, &[vec![]], &greedy(1), |_, _| true).is_err());
    }
}
