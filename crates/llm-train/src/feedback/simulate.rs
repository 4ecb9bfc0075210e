//! Simulated annotators judge the items of a database, as people would.

use std::collections::HashMap;

use llm_data::ChatMessage;
use llm_feedback::Annotator;
use llm_feedback::store::{Grades, Judgement, Kind, Policy, Role, Store, Task, digest, now};
use llm_synthetic::{Question, Split, Use, World, WorldConfig};

use crate::run::Event;
use crate::{Error, Result};

/// Settings of [`simulate`].
#[derive(Debug, Clone, PartialEq)]
pub struct SimulateOptions {
    /// The names of the annotators.
    pub names: Vec<String>,
    /// Noise, biases and seed; each annotator and each judgement has its own noise.
    pub annotator: Annotator,
    /// How items are given out.
    pub policy: Policy,
}

/// Lets simulated annotators judge in turn until nothing is left; returns the number of judgements. `utilities` gives the true utilities
/// of the texts after a prompt. They get their items and give their judgements as people do.
pub fn simulate(
    store: &Store,
    options: &SimulateOptions,
    mut utilities: impl FnMut(&[ChatMessage], &[&str]) -> Result<Vec<f64>>,
    observer: &mut dyn FnMut(Event),
) -> Result<usize> {
    options.annotator.validate()?;
    let mut waiting = Vec::new();
    for name in &options.names {
        waiting.push((name, store.annotator_as(name, Role::Simulated)?));
    }
    let mut total = 0;
    for (_, id) in &waiting {
        total += store.progress(*id, &options.policy, now())?.left;
    }
    observer(Event::Begin { stage: "simulate", total: total as u64, done: 0, unit: "judgements" });
    let mut done = 0;
    while !waiting.is_empty() {
        let mut left = Vec::new();
        for (name, id) in waiting {
            let Some(task) = store.next(id, &options.policy, now())? else { continue };
            let started = now();
            let kind = rank(name, &task, &options.annotator, &mut utilities)?;
            let judgement = Judgement {
                id: digest(&["simulated", name, &task.item, &started.to_string(), &done.to_string()]),
                item: task.item,
                annotator: id,
                kind,
                shown: task.answers.iter().map(|answer| answer.id.clone()).collect(),
                grades: Grades::new(),
                reason: None,
                started,
                // The time of a program says nothing.
                ms_visible: 0,
                repeat_of: task.repeat_of,
                guideline_version: options.policy.guideline_version(),
            };
            store.judge(&judgement, now())?;
            done += 1;
            observer(Event::Progress { done, message: "" });
            left.push((name, id));
        }
        waiting = left;
    }
    observer(Event::End);
    Ok(usize::try_from(done).unwrap_or(usize::MAX))
}

fn rank(
    name: &str,
    task: &Task,
    annotator: &Annotator,
    utilities: &mut impl FnMut(&[ChatMessage], &[&str]) -> Result<Vec<f64>>,
) -> Result<Kind> {
    let texts: Vec<&str> = task.answers.iter().map(|answer| answer.text.as_str()).collect();
    let utilities = utilities(&task.prompt, &texts)?;
    let again = task.repeat_of.as_deref().unwrap_or("");
    let order = annotator.rank(&format!("{name} {} {again}", task.item), &utilities, &texts)?;
    let ranks = (1..).zip(order).map(|(rank, answer)| (task.answers[answer].id.clone(), rank)).collect();
    Ok(Kind::Rank { ranks })
}

/// The true utilities of replies to the questions of the built-in world.
#[derive(Debug)]
pub struct WorldUtilities {
    questions: HashMap<String, Question>,
}

/// Questions of each purpose that are known; the lifecycle uses fewer.
const QUESTIONS: usize = 10_000;

impl WorldUtilities {
    /// The questions of the world with these settings.
    pub fn new(config: WorldConfig) -> Self {
        let world = World::new(config);
        let mut questions = HashMap::new();
        for split in [Split::Train, Split::HeldOut] {
            for purpose in [Use::Rankings, Use::Validation, Use::Prompts, Use::Lessons] {
                let all = world.questions(split, purpose, QUESTIONS);
                questions.extend(all.into_iter().map(|question| (question.prompt.clone(), question)));
            }
        }
        Self { questions }
    }

    /// The utilities of replies to a prompt; a prompt that is none of these questions is an error.
    pub fn of(&self, prompt: &[ChatMessage], texts: &[&str]) -> Result<Vec<f64>> {
        let text = prompt.last().map(|message| message.text().into_owned()).unwrap_or_default();
        let question = self.questions.get(&text).ok_or_else(|| {
            Error::BadRequest(format!(
                "\"{text}\" is no question of the built-in world; name a reward model instead (--reward)"
            ))
        })?;
        Ok(texts.iter().map(|text| question.utility(text).total()).collect())
    }
}
