//! Samples the answers that people judge: several for each prompt, from one model or several, through the engine.

use std::collections::BTreeSet;
use std::time::Duration;

use llm_data::{ChatMessage, Conversation};
use llm_engine::{
    Engine, EngineOptions, Event as EngineEvent, FinishReason, Request, Sampling, SubmitError, TextModel,
};
use llm_feedback::store::{MAX_ANSWERS, NewAnswer, NewItem, Store, digest};
use serde_json::json;

use crate::run::Event;
use crate::{Error, Result};

/// A model with its settings, which gives answers.
#[derive(Debug, Clone)]
pub struct Contestant {
    /// The name that is stored as the checkpoint.
    pub name: String,
    /// The engine of the model.
    pub engine: Engine,
    /// The settings of sampling; each answer gets its own seed.
    pub sampling: Sampling,
}

impl Contestant {
    /// Starts a model whose answers do not depend on what else it computes, once for each of `samplings`.
    pub fn start(name: &str, model: TextModel, samplings: &[Sampling]) -> Result<Vec<Self>> {
        let options = EngineOptions {
            deterministic: true,
            // An answer waits until it is read.
            stall_timeout: Duration::from_hours(24),
            max_queue: 4096,
            max_queued_tokens: usize::MAX,
            ..EngineOptions::default()
        };
        let engine = Engine::start(model, options)?;
        let one =
            |sampling: &Sampling| Self { name: name.to_owned(), engine: engine.clone(), sampling: sampling.clone() };
        Ok(samplings.iter().map(one).collect())
    }
}

/// Settings of [`collect`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectOptions {
    /// Answers to each prompt, 2 to 9.
    pub answers: usize,
    /// The longest answer in tokens, at least 1.
    pub max_new_tokens: usize,
    /// The same seed gives the same answers.
    pub seed: u64,
}

/// What [`collect`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// New items.
    pub added: usize,
    /// Prompts whose answers were there already.
    pub present: usize,
    /// Prompts that occur again in the data.
    pub duplicates: usize,
    /// Answers that were sampled again because another one had the same text.
    pub resampled: usize,
    /// Answers that were left out because they still had the text of another one.
    pub equal: usize,
    /// Prompts that were left out because they have fewer than two different answers.
    pub without_choice: usize,
}

/// Prompts whose answers are computed together.
const WAVE: usize = 16;

/// How often an answer is sampled again that equals another one.
const TRIES: u64 = 3;

/// The event of a prompt that has fewer than two different answers.
const NO_CHOICE: &str = "collect: fewer than two different answers: ";

/// Stores `answers` different answers to each prompt in a database, those of the contestants in turn.
///
/// The name of an item is a hash of the prompt, the contestants and the options: a call that was interrupted goes on where it ended, and a
/// second call adds nothing. Answers do not depend on the order of the prompts or on what else is computed.
pub fn collect(
    store: &Store,
    prompts: &[Conversation],
    source: &str,
    contestants: &[Contestant],
    options: &CollectOptions,
    observer: &mut dyn FnMut(Event),
) -> Result<Collected> {
    check(contestants, options)?;
    let mut done = Collected::default();
    let mut seen = BTreeSet::new();
    let no_choice: BTreeSet<String> =
        store.events()?.into_iter().filter_map(|(_, what)| Some(what.strip_prefix(NO_CHOICE)?.to_owned())).collect();
    let mut todo = Vec::new();
    for prompt in prompts {
        let id = item_id(prompt, contestants, options)?;
        if !seen.insert(id.clone()) {
            done.duplicates += 1;
        } else if store.item(&id)?.is_some() {
            done.present += 1;
        } else if no_choice.contains(&id) {
            done.without_choice += 1;
        } else {
            todo.push((id, &prompt.messages));
        }
    }
    let before = (seen.len() - todo.len()) as u64;
    observer(Event::Begin { stage: "collect", total: seen.len() as u64, done: before, unit: "prompts" });
    for wave in todo.chunks(WAVE) {
        let items = sample(wave, source, contestants, options, &mut done)?;
        let (chosen, rest): (Vec<NewItem>, Vec<NewItem>) = items.into_iter().partition(|item| item.answers.len() >= 2);
        store.add_items(&chosen)?;
        for item in &rest {
            store.log_event(None, None, &format!("{NO_CHOICE}{}", item.id))?;
        }
        done.added += chosen.len();
        done.without_choice += rest.len();
        observer(Event::Progress { done: (done.added + done.without_choice + done.present) as u64, message: "" });
    }
    observer(Event::End);
    Ok(done)
}

fn check(contestants: &[Contestant], options: &CollectOptions) -> Result<()> {
    if !(2..=MAX_ANSWERS).contains(&options.answers) {
        return Err(Error::BadRequest(format!("answers is {}; it must be from 2 to {MAX_ANSWERS}", options.answers)));
    }
    if contestants.is_empty() || options.max_new_tokens == 0 {
        return Err(Error::BadRequest("there must be at least one model, and at least one new token".to_owned()));
    }
    match contestants.iter().find(|one| !one.engine.model_info().generates) {
        Some(one) => Err(Error::BadRequest(format!("{}: is no language model; it has another head", one.name))),
        None => Ok(()),
    }
}

fn json_of(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::Internal(format!("collect: {error}")))
}

fn item_id(prompt: &Conversation, contestants: &[Contestant], options: &CollectOptions) -> Result<String> {
    let mut parts = vec![json_of(&prompt.messages)?];
    for one in contestants {
        parts.extend([one.name.clone(), json_of(&one.sampling)?]);
    }
    parts.push(format!("{} {} {}", options.answers, options.max_new_tokens, options.seed));
    Ok(digest(&parts.iter().map(String::as_str).collect::<Vec<_>>()))
}

/// A place for an answer of an item.
struct Slot<'a> {
    item: usize,
    contestant: &'a Contestant,
    number: usize,
    tries: u64,
}

impl Slot<'_> {
    fn seed(&self, item: &str, options: &CollectOptions) -> u64 {
        let (number, tries) = (self.number.to_string(), self.tries.to_string());
        let text = digest(&["answer", &options.seed.to_string(), item, &number, &tries]);
        u64::from_str_radix(&text, 16).unwrap_or(0)
    }
}

/// The items of a wave of prompts. An item can have fewer answers than wanted: only different ones are kept.
fn sample(
    wave: &[(String, &Vec<ChatMessage>)],
    source: &str,
    contestants: &[Contestant],
    options: &CollectOptions,
    done: &mut Collected,
) -> Result<Vec<NewItem>> {
    let new = |(id, prompt): &(String, &Vec<ChatMessage>)| NewItem {
        id: id.clone(),
        prompt: (*prompt).clone(),
        source: source.to_owned(),
        gold_order: None,
        answers: Vec::new(),
    };
    let mut items: Vec<NewItem> = wave.iter().map(new).collect();
    let mut slots: Vec<Slot> = Vec::new();
    for (item, (id, _)) in wave.iter().enumerate() {
        // Where fewer answers than contestants are wanted, each item begins with another one.
        let first = id.bytes().fold(0usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte)));
        slots.extend((0..options.answers).map(|number| {
            let contestant = &contestants[(first % contestants.len() + number) % contestants.len()];
            Slot { item, contestant, number, tries: 0 }
        }));
    }
    while !slots.is_empty() {
        let mut again = Vec::new();
        for (mut slot, answer) in answers(wave, slots, options)? {
            let item = &mut items[slot.item];
            if item.answers.iter().all(|other| other.text != answer.text) {
                item.answers.push(answer);
            } else if slot.tries < TRIES && slot.contestant.sampling.temperature > 0. {
                slot.tries += 1;
                done.resampled += 1;
                again.push(slot);
            } else {
                done.equal += 1;
            }
        }
        slots = again;
    }
    for item in &mut items {
        // The names say nothing of the model, and their order neither.
        item.answers.sort_by(|a, b| a.id.cmp(&b.id));
    }
    Ok(items)
}

/// One answer for each slot, in the order of the slots.
fn answers<'a>(
    wave: &[(String, &Vec<ChatMessage>)],
    slots: Vec<Slot<'a>>,
    options: &CollectOptions,
) -> Result<Vec<(Slot<'a>, NewAnswer)>> {
    let mut running = Vec::with_capacity(slots.len());
    for slot in slots {
        let (id, prompt) = &wave[slot.item];
        let seed = slot.seed(id, options);
        let ids = slot.contestant.engine.text_model().chat_ids(prompt.as_slice())?;
        let sampling = Sampling { seed: Some(seed), ..slot.contestant.sampling.clone() };
        let request = Request { sampling, ..Request::new(ids, options.max_new_tokens) };
        let generation = slot.contestant.engine.submit(request).map_err(|error| match error {
            SubmitError::Invalid(error) => Error::Engine(error),
            other => Error::Internal(format!("collect: {other}")),
        })?;
        running.push((slot, seed, generation));
    }
    let mut finished = Vec::with_capacity(running.len());
    for (slot, seed, mut generation) in running {
        let (mut text, mut token_ids, mut finish) = (String::new(), Vec::new(), FinishReason::Length);
        while let Some(event) = generation.blocking_next() {
            match event {
                EngineEvent::Text { text: piece, tokens, .. } => {
                    text += &piece;
                    token_ids.extend(tokens.iter().map(|token| token.id));
                }
                EngineEvent::End { reason, .. } => finish = reason,
                EngineEvent::Failed(error) => return Err(error.into()),
                EngineEvent::Prompt(_) | EngineEvent::Done(_) => (),
            }
        }
        let sampling = serde_json::to_value(&slot.contestant.sampling)
            .map_err(|error| Error::Internal(format!("collect: {error}")))?;
        let id = digest(&["name", &wave[slot.item].0, &slot.number.to_string(), &slot.tries.to_string()]);
        let answer = NewAnswer {
            token_ids: Some(token_ids),
            checkpoint: Some(slot.contestant.name.clone()),
            sampling: Some(json!({ "max_new_tokens": options.max_new_tokens, "sampling": sampling })),
            seed: Some(seed),
            finish: Some(if finish == FinishReason::Stop { "stop" } else { "length" }.to_owned()),
            ..NewAnswer::text(&id[..8], text)
        };
        finished.push((slot, answer));
    }
    Ok(finished)
}
