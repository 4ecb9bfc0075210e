//! The answers of both models, and their rewards.

use std::path::{Path, PathBuf};

use candle_core::Device;
use llm_data::{ReadOptions, read_prompts};
use llm_engine::{GenerateOptions, SampledReply, Sampling, generate_batch};
use llm_model::{Head, Model};
use llm_tokenizer::Tokenizer;
use rand::RngExt;
use serde_json::json;

use super::{CompareInputs, CompareRecipe, Pair, answer_of};
use crate::adapters::base_of_adapter;
use crate::compat::{TokenSource, check_compatible};
use crate::examples::take_evenly;
use crate::load::{chat_format, load_model};
use crate::recipes::load_tokenizer;
use crate::rewards::{Prompt, Reward, RewardModel};
use crate::run::rng;
use crate::splits::read_items;
use crate::{Error, Result};

/// A model that is compared.
pub(super) struct Contestant {
    dir: PathBuf,
    model: Model,
    tokenizer: Tokenizer,
    end_of_turn: u32,
}

impl Contestant {
    /// Loads the model of a folder, or the adapter of a folder on its base.
    pub fn open(dir: &Path, device: &Device) -> Result<Self> {
        let tokenizer = load_tokenizer(dir)?.with_end_of_turn_as_eos();
        let end_of_turn = chat_format(&tokenizer, dir)?.end_of_turn;
        let is_adapter = dir.join("adapter_config.json").is_file() && !dir.join("config.json").is_file();
        let model = match is_adapter {
            false => load_model(dir, Head::LanguageModel)?,
            true => {
                let mut model = load_model(&base_of_adapter(dir)?, Head::LanguageModel)?;
                model.load_adapter("compared", dir)?;
                model.use_adapter(Some("compared"))?;
                model
            }
        };
        check_compatible(model.config(), (&tokenizer, dir), &[])?;
        Ok(Self { dir: dir.to_owned(), model: model.to_device(device)?, tokenizer, end_of_turn })
    }
}

/// An answer of a model.
pub(super) struct Reply {
    /// The token ids, with the end token.
    pub ids: Vec<u32>,
    pub text: String,
    /// Whether it ends with the end token.
    pub finished: bool,
}

/// All answers of a model.
pub(super) struct Replies {
    /// The token ids of each prompt.
    queries: Vec<Vec<u32>>,
    /// By prompt and number.
    replies: Vec<Vec<Reply>>,
}

impl Replies {
    pub fn text(&self, prompt: usize, number: usize) -> &str {
        &self.replies[prompt][number].text
    }

    pub fn reply(&self, prompt: usize, number: usize) -> &Reply {
        &self.replies[prompt][number]
    }
}

/// The prompts of the data that leave room for an answer of both models. Their token ids are those of the first one.
pub(super) fn prompts(recipe: &CompareRecipe, data: &Path, contestants: &[Contestant; 2]) -> Result<Vec<Prompt>> {
    let read = |path: &Path, options: &ReadOptions| Ok(read_prompts(path, options)?);
    let rows = read_items(data, &recipe.data.read_options(), read)?;
    let all = rows.len();
    let mut prompts = Vec::with_capacity(all);
    for (conversation, row) in rows {
        let fits = |contestant: &Contestant| -> Result<bool> {
            let query = contestant.tokenizer.encode_chat(&conversation, true)?;
            Ok(query.len() + recipe.max_new_tokens <= contestant.model.config().max_position_embeddings)
        };
        if fits(&contestants[0])? && fits(&contestants[1])? {
            prompts.push(Prompt::encode(&contestants[0].tokenizer, &conversation, row)?);
        }
    }
    if prompts.is_empty() {
        let (data, room) = (data.display(), recipe.max_new_tokens);
        return Err(Error::TooLong(format!("{data}: no prompt leaves room for {room} tokens; lower max_new_tokens")));
    }
    if prompts.len() < all {
        tracing::warn!("{}: left out {} of {all} prompts that are too long", data.display(), all - prompts.len());
    }
    Ok(take_evenly(prompts, recipe.prompts))
}

/// Samples the answers of a model. They depend on the seed and the prompts only.
pub(super) fn replies_of(recipe: &CompareRecipe, contestant: &Contestant, prompts: &[Prompt]) -> Result<Replies> {
    let Contestant { model, tokenizer, end_of_turn, .. } = contestant;
    let queries = prompts
        .iter()
        .map(|prompt| Ok(tokenizer.encode_chat(&prompt.messages, true)?))
        .collect::<Result<Vec<Vec<u32>>>>()?;
    let sampling = Sampling {
        temperature: recipe.temperature,
        seed: Some(rng(recipe.seed, 2, 0).random()),
        ..Sampling::default()
    };
    let options =
        GenerateOptions { max_new_tokens: recipe.max_new_tokens, stop_ids: Some(vec![*end_of_turn]), sampling };
    let read = |reply: SampledReply| {
        let (text, finished) = (tokenizer.decode(&reply.ids)?, reply.ids.last() == Some(end_of_turn));
        Ok(Reply { ids: reply.ids, text, finished })
    };
    let all = generate_batch(model, &queries, recipe.answers, &options)?;
    let replies = all.into_iter().map(|of_prompt| of_prompt.into_iter().map(read).collect());
    let replies = replies.collect::<Result<Vec<Vec<Reply>>>>()?;
    Ok(Replies { queries, replies })
}

/// The reward of the recipe, on a device. It is an error if a reward model has another tokenizer than the models.
pub(super) fn reward(
    recipe: &CompareRecipe,
    inputs: &CompareInputs,
    contestants: &[Contestant; 2],
    device: &Device,
) -> Result<Reward<'static>> {
    let mut reward = Reward::open(&recipe.rewards, &inputs.reward, &contestants[0].tokenizer)?;
    reward.to_device(device)?;
    let models: Vec<TokenSource> = reward.models().map(RewardModel::token_source).collect();
    for contestant in contestants {
        check_compatible(contestant.model.config(), (&contestant.tokenizer, &contestant.dir), &models)?;
    }
    Ok(reward)
}

/// The rewards of the (first, second) model's answer of each pair. The answers of a pair are scored in its random order.
pub(super) fn scores(
    recipe: &CompareRecipe,
    reward: &Reward,
    prompts: &[Prompt],
    pairs: &[Pair],
) -> Result<Vec<[f64; 2]>> {
    let mut all = vec![[0.; 2]; pairs.len()];
    for (chunk, scores) in pairs.chunks(recipe.batch_size).zip(all.chunks_mut(recipe.batch_size)) {
        let order: Vec<(usize, usize)> = chunk
            .iter()
            .enumerate()
            .flat_map(|(at, pair)| if pair.exchanged { [(at, 1), (at, 0)] } else { [(at, 0), (at, 1)] })
            .collect();
        let answer = |&(at, side): &(usize, usize)| {
            let Pair { prompt, number, sides, .. } = &chunk[at];
            answer_of(&prompts[*prompt], &sides[side].queries[*prompt], sides[side].reply(*prompt, *number))
        };
        let found = reward.score(&order.iter().map(answer).collect::<Vec<_>>())?;
        for ((at, side), score) in order.into_iter().zip(found) {
            scores[at][side] = score;
        }
    }
    Ok(all)
}

/// Writes a JSON line for each pair: prompt, answers of the first and the second model, and their rewards.
pub(super) fn write(out: &Path, prompts: &[Prompt], pairs: &[Pair], scores: Option<&[[f64; 2]]>) -> Result<()> {
    let mut text = String::new();
    for (at, pair) in pairs.iter().enumerate() {
        let line = json!({
            "prompt": prompts[pair.prompt].messages,
            "answers": pair.texts(),
            "rewards": scores.map(|scores| scores[at]),
        });
        text.push_str(&format!("{line}\n"));
    }
    Ok(llm_model::write_atomic(out, text.as_bytes())?)
}
