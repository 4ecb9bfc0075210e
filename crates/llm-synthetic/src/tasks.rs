//! Questions with a known answer, in several kinds of prompts.

use llm_data::{ChatMessage, Conversation};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::facts::{ARROWS, Relation};
use super::lexicon::CATEGORIES;
use super::questions::{Asked, class, fact, noun, noun_key, story, summary};
use super::split::{Split, SplitKey};
use super::topic::Topic;
use super::{dialogue, pick};

/// The kind of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptKind {
    /// A question or an instruction.
    Instruction,
    /// A few examples, which alone define the mapping, and a query (Brown et al. 2020).
    FewShot,
    /// A classification without examples.
    ZeroShot,
    /// A request to think step by step (Wei et al. 2022; Kojima et al. 2022).
    ChainOfThought,
    /// A question with a system message that gives the model a role.
    Role,
    /// A follow-up question whose meaning depends on an earlier turn.
    Dialogue,
}

impl PromptKind {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::Instruction, Self::FewShot, Self::ZeroShot, Self::ChainOfThought, Self::Role, Self::Dialogue];

    /// The name for reports.
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

/// A question with its answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// The topic.
    pub topic: Topic,
    /// The kind of the prompt.
    pub kind: PromptKind,
    /// The prompt.
    pub messages: Vec<ChatMessage>,
    /// All right answers; the first is the one to train on.
    pub answers: Vec<String>,
    /// The same question for a base model: the beginning of a sentence, and its right continuation.
    pub cloze: (String, String),
    /// The accuracy of random guessing (0 if the answers are not a small closed class).
    pub chance: f64,
    /// The fact that is asked for: the unit of the split and of confidence intervals.
    pub key: SplitKey,
}

impl Task {
    /// The prompt with its right answer.
    pub fn conversation(&self) -> Conversation {
        let mut messages = self.messages.clone();
        messages.push(ChatMessage::assistant(&self.answers[0]));
        messages.into()
    }

    /// Whether the reply equals one of the right answers, ignoring case, white space and a final full stop.
    pub fn is_right(&self, reply: &str) -> bool {
        let reply = normalised(reply);
        self.answers.iter().any(|answer| normalised(answer) == reply)
    }

    /// Whether a continuation of the first part of the cloze starts with the second part.
    pub fn completes_cloze(&self, continuation: &str) -> bool {
        let (continuation, wanted) = (normalised(continuation), normalised(&self.cloze.1));
        let rest = continuation.strip_prefix(&wanted);
        rest.is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
    }

    fn of(asked: Asked, kind: PromptKind, messages: Vec<ChatMessage>) -> Self {
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

/// A task with this kind of prompt about a fact of the split.
pub(super) fn draw(rng: &mut ChaCha8Rng, seed: u64, split: Split, kind: PromptKind) -> Task {
    let alone = |asked: Asked| {
        let messages = vec![ChatMessage::user(&asked.question)];
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

/// A few-shot prompt. Every noun has a French word, a plural and a category; only the examples determine which is asked for.
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
        messages: vec![ChatMessage::user(&prompt)],
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
    // In a role, only whole sentences are right answers.
    asked.answers.retain(|answer| answer.ends_with('.'));
    asked.answers.iter_mut().for_each(|answer| *answer = format!("{before} {answer} {after}"));
    let messages = vec![ChatMessage::system(system), ChatMessage::user(&asked.question)];
    Task::of(asked, PromptKind::Role, messages)
}

#[cfg(test)]
#[path = "tasks_tests.rs"]
mod tests;
