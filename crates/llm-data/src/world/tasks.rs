//! Tasks with a known answer: questions in the kinds of prompts that models are asked in.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::facts::{ARROWS, Relation};
use super::lexicon::CATEGORIES;
use super::questions::{Asked, class, fact, noun, noun_key, story, summary};
use super::split::{Split, SplitKey};
use super::{dialogue, pick};
use crate::{Conversation, Message};

/// How a prompt tells the model what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptKind {
    /// It says what to do.
    Instruction,
    /// It shows a few examples, which alone define the mapping, and leaves the last one open.
    FewShot,
    /// It asks for a classification and shows no example.
    ZeroShot,
    /// It asks to think step by step.
    ChainOfThought,
    /// A system message gives the model a role.
    Role,
    /// It is the last turn of a dialogue, and says what is meant only together with an earlier one.
    Dialogue,
}

impl PromptKind {
    /// All six.
    pub const ALL: [Self; 6] =
        [Self::Instruction, Self::FewShot, Self::ZeroShot, Self::ChainOfThought, Self::Role, Self::Dialogue];

    /// Its name in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Instruction => "instruction",
            Self::FewShot => "few-shot",
            Self::ZeroShot => "zero-shot",
            Self::ChainOfThought => "chain of thought",
            Self::Role => "role",
            Self::Dialogue => "dialogue",
        }
    }
}

/// What a task is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topic {
    /// Countries and their capitals.
    Capital,
    /// Colours of things.
    Colour,
    /// Opposites.
    Opposite,
    /// English words in French.
    French,
    /// Animals, fruits, tools, garments.
    Category,
    /// A word in the plural.
    Plural,
    /// One sum.
    Sum,
    /// A story in which a number changes.
    Story,
    /// A short text to be summed up.
    Summary,
    /// Happy or sad.
    Feeling,
}

/// A question with its answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// What it is about.
    pub topic: Topic,
    /// How it is asked.
    pub kind: PromptKind,
    /// The prompt.
    pub messages: Vec<Message>,
    /// All answers that are right; the first is the one to be taught.
    pub answers: Vec<String>,
    /// The beginning of a plain text that asks a model the same which was never taught to answer, and how it must go on.
    pub cloze: (String, String),
    /// The share that a blind guess among the possible answers gets right (0 where they are not a small closed class).
    pub chance: f64,
    /// The fact that is asked for: the unit of the split and of intervals.
    pub key: SplitKey,
}

impl Task {
    /// The prompt with its right answer.
    pub fn conversation(&self) -> Conversation {
        let mut messages = self.messages.clone();
        messages.push(Message::assistant(&self.answers[0]));
        Conversation { messages }
    }

    /// Whether the reply is one of the right answers: upper and lower case, spaces and a final full stop apart, the same.
    pub fn is_right(&self, reply: &str) -> bool {
        let reply = normalised(reply);
        self.answers.iter().any(|answer| normalised(answer) == reply)
    }

    /// Whether a plain text that begins with the cloze's first part goes on with its second one.
    pub fn completes_cloze(&self, continuation: &str) -> bool {
        let (continuation, wanted) = (normalised(continuation), normalised(&self.cloze.1));
        let rest = continuation.strip_prefix(&wanted);
        rest.is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
    }

    fn of(asked: Asked, kind: PromptKind, messages: Vec<Message>) -> Self {
        let chance = match asked.topic {
            Topic::Category => 0.25,
            Topic::Feeling => 0.5,
            _ => 0.,
        };
        Self { topic: asked.topic, kind, messages, answers: asked.answers, cloze: asked.cloze, chance, key: asked.key }
    }
}

fn normalised(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    text.strip_suffix('.').unwrap_or(&text).to_owned()
}

/// A task of that kind whose fact is of the split, in the world of `seed`.
pub(super) fn draw(rng: &mut ChaCha8Rng, seed: u64, split: Split, kind: PromptKind) -> Task {
    let alone = |asked: Asked| {
        let messages = vec![Message::user(&asked.question)];
        Task::of(asked, kind, messages)
    };
    match kind {
        PromptKind::Instruction if rng.random_range(0..7) == 0 => alone(summary(rng, seed, split)),
        PromptKind::Instruction => alone(fact(rng, seed, split)),
        PromptKind::FewShot => few_shot(rng, seed, split),
        PromptKind::ZeroShot => alone(class(rng, seed, split)),
        PromptKind::ChainOfThought => alone(story(rng, seed, split)),
        PromptKind::Role => role(rng, seed, split),
        PromptKind::Dialogue => {
            let (messages, asked) = dialogue::follow_up(rng, seed, split);
            Task::of(asked, kind, messages)
        }
    }
}

/// Every noun has a French word, a plural and a category: the examples alone say which of them is asked for.
fn few_shot(rng: &mut ChaCha8Rng, seed: u64, split: Split) -> Task {
    let (relation, arrow) = (pick(rng, &Relation::ALL), pick(rng, &ARROWS));
    let shots = rng.random_range(2..=3);
    let mut shown: Vec<(usize, usize)> = Vec::new();
    while shown.len() <= shots {
        let (_, noun) = noun(rng, seed, split);
        if !shown.contains(&noun) {
            shown.push(noun);
        }
    }
    let pair = |&(kind, index): &(usize, usize)| (CATEGORIES[kind].1[index].0, relation.of(kind, index));
    let (asked, answer) = pair(&shown[shots]);
    let mut lines: Vec<String> =
        shown[..shots].iter().map(pair).map(|(word, mapped)| format!("{word}{arrow} {mapped}")).collect();
    lines.push(format!("{asked}{arrow}"));
    let prompt = lines.join("\n");
    let topic = match relation {
        Relation::French => Topic::French,
        Relation::Plural => Topic::Plural,
        Relation::Category => Topic::Category,
    };
    let (kind, index) = shown[shots];
    Task {
        topic,
        kind: PromptKind::FewShot,
        messages: vec![Message::user(&prompt)],
        answers: vec![answer.to_owned(), format!("{asked}{arrow} {answer}")],
        cloze: (prompt, answer.to_owned()),
        chance: 0.,
        key: noun_key(kind, index),
    }
}

fn role(rng: &mut ChaCha8Rng, seed: u64, split: Split) -> Task {
    let mut asked = fact(rng, seed, split);
    let (role, before, after) = pick(
        rng,
        &[
            ("a pirate", "Arr!", "Ahoy, sailor!"),
            ("a butler", "Certainly, my lord.", "Will that be all?"),
            ("a robot", "Beep.", "End of message."),
            ("a teacher", "Good question!", "Now you know it."),
        ],
    );
    let system = match rng.random_range(0..3) {
        0 => format!("You are {role}."),
        1 => format!("Answer like {role}."),
        _ => format!("Play the role of {role}."),
    };
    // A bare word is no answer of somebody who plays a role.
    asked.answers.retain(|answer| answer.ends_with('.'));
    asked.answers.iter_mut().for_each(|answer| *answer = format!("{before} {answer} {after}"));
    let messages = vec![Message::system(system), Message::user(&asked.question)];
    Task::of(asked, PromptKind::Role, messages)
}

#[cfg(test)]
#[path = "tasks_tests.rs"]
mod tests;
