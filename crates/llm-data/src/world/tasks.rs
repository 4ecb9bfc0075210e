//! Questions with a known answer, in the five kinds of prompts.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::lexicon::{CAPITALS, CATEGORIES, COLOURS, FRENCH, OPPOSITES};
use super::{Split, capitalised, facts, pick, split_of, with_article};
use crate::{Conversation, Message};

/// How a prompt tells the model what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptKind {
    /// It says what to do.
    Instruction,
    /// It shows a few examples and leaves the last one open.
    FewShot,
    /// It asks for a classification and shows no example.
    ZeroShot,
    /// It asks to think step by step.
    ChainOfThought,
    /// A system message gives the model a role.
    Role,
}

impl PromptKind {
    /// All five.
    pub const ALL: [Self; 5] = [Self::Instruction, Self::FewShot, Self::ZeroShot, Self::ChainOfThought, Self::Role];

    /// Its name in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Instruction => "instruction",
            Self::FewShot => "few-shot",
            Self::ZeroShot => "zero-shot",
            Self::ChainOfThought => "chain of thought",
            Self::Role => "role",
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// What it is about.
    pub topic: Topic,
    /// How it is asked.
    pub kind: PromptKind,
    /// The prompt.
    pub messages: Vec<Message>,
    /// A right answer.
    pub answer: String,
    /// What an answer must contain to be right, in this order.
    pub keys: Vec<String>,
}

impl Task {
    /// The prompt with its right answer.
    pub fn conversation(&self) -> Conversation {
        let mut messages = self.messages.clone();
        messages.push(Message::assistant(&self.answer));
        Conversation { messages }
    }

    /// Whether the reply is right: it has every key as whole words, in order, is not much longer than it need be, and
    /// where a number is asked for, its last number is the right one.
    pub fn is_right(&self, reply: &str) -> bool {
        let words = |text: &str| {
            let keep = |c: char| if c.is_alphanumeric() || "+-=".contains(c) { c.to_ascii_lowercase() } else { ' ' };
            let text: String = text.chars().map(keep).collect();
            text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        let reply = words(reply);
        let mut rest = &reply[..];
        for key in &self.keys {
            let key = words(key);
            let Some(at) = rest.windows(key.len()).position(|window| window == key) else { return false };
            rest = &rest[at + key.len()..];
        }
        let number = |words: &[String]| words.iter().rev().find_map(|word| word.parse::<u32>().ok());
        let numeric = matches!(self.topic, Topic::Sum | Topic::Story);
        let expected = words(&self.answer);
        reply.len() <= expected.len() + 10 && (!numeric || number(&reply) == number(&expected))
    }
}

pub(super) fn draw(rng: &mut ChaCha8Rng, split: Split, kind: PromptKind) -> Task {
    loop {
        let task = match kind {
            PromptKind::Instruction => instruction(rng),
            PromptKind::FewShot => few_shot(rng),
            PromptKind::ZeroShot => zero_shot(rng),
            PromptKind::ChainOfThought => chain_of_thought(rng),
            PromptKind::Role => role(rng),
        };
        let prompt: Vec<&str> = task.messages.iter().map(|m| m.content.as_str()).collect();
        if split_of(&prompt.join("\n")) == split {
            return task;
        }
    }
}

/// The farmer's apples of the guide, however they are told: 3, of which 1 goes, and 5 come.
pub(super) fn is_the_farmers_problem(text: &str) -> bool {
    let numbers: Vec<u32> = text.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
    numbers == [3, 1, 5] && text.contains("apples")
}

/// A question about one fact, its full answer and the key.
fn fact(rng: &mut ChaCha8Rng) -> (Topic, String, String, String) {
    match rng.random_range(0..5) {
        0 => {
            let (country, capital) = pick(rng, &CAPITALS);
            let question = match rng.random_range(0..6) {
                0 => format!("What is the capital of {country}?"),
                1 => format!("Name the capital of {country}."),
                2 => format!("Which city is the capital of {country}?"),
                3 => format!("Tell me the capital of {country}."),
                4 => format!("What is {country}'s capital?"),
                _ => format!("Do you know the capital of {country}?"),
            };
            (Topic::Capital, question, format!("The capital of {country} is {capital}."), capital.to_owned())
        }
        1 => {
            let (thing, colour) = pick(rng, &COLOURS);
            let thing = with_article(thing);
            let question = match rng.random_range(0..5) {
                0 => format!("What colour is {thing}?"),
                1 => format!("What is the colour of {thing}?"),
                2 => format!("Which colour does {thing} have?"),
                3 => format!("Tell me the colour of {thing}."),
                _ => format!("Name the colour of {thing}."),
            };
            (Topic::Colour, question, format!("The colour of {thing} is {colour}."), colour.to_owned())
        }
        2 => {
            let (one, other) = pick(rng, &OPPOSITES);
            let (word, opposite) = if rng.random() { (one, other) } else { (other, one) };
            let question = match rng.random_range(0..4) {
                0 => format!("What is the opposite of {word}?"),
                1 => format!("Name the opposite of {word}."),
                2 => format!("Tell me the opposite of {word}."),
                _ => format!("Which word is the opposite of {word}?"),
            };
            (Topic::Opposite, question, format!("The opposite of {word} is {opposite}."), opposite.to_owned())
        }
        3 => {
            let (english, french) = pick(rng, &FRENCH);
            let question = match rng.random_range(0..5) {
                0 => format!("What is the French word for {english}?"),
                1 => format!("Translate {english} into French."),
                2 => format!("How do you say {english} in French?"),
                3 => format!("Tell me the French word for {english}."),
                _ => format!("What is {english} in French?"),
            };
            (Topic::French, question, format!("The French word for {english} is {french}."), french.to_owned())
        }
        _ => {
            let (a, op, b, result) = facts::sum(rng);
            let name = if op == '+' { "plus" } else { "minus" };
            let question = match rng.random_range(0..4) {
                0 => format!("What is {a} {name} {b}?"),
                1 => format!("How much is {a} {op} {b}?"),
                2 => format!("Compute {a} {op} {b}."),
                _ => format!("What is {a} {op} {b}?"),
            };
            (Topic::Sum, question, format!("{a} {op} {b} = {result}."), result.to_string())
        }
    }
}

fn instruction(rng: &mut ChaCha8Rng) -> Task {
    if rng.random_range(0..7) == 0 {
        let (text, summary) = facts::summary(rng);
        let ask =
            pick(rng, &["Summarize this text in one sentence:", "Sum up in one sentence:", "Give a short summary:"]);
        let messages = vec![Message::user(format!("{ask} {text}"))];
        let keys = vec![summary.trim_end_matches('.').to_owned()];
        return Task { topic: Topic::Summary, kind: PromptKind::Instruction, messages, answer: summary, keys };
    }
    let (topic, question, answer, key) = fact(rng);
    Task { topic, kind: PromptKind::Instruction, messages: vec![Message::user(question)], answer, keys: vec![key] }
}

fn few_shot(rng: &mut ChaCha8Rng) -> Task {
    let (topic, pairs): (Topic, Vec<(&str, &str)>) = match rng.random_range(0..5) {
        0 => (Topic::Capital, CAPITALS.to_vec()),
        1 => (Topic::Colour, COLOURS.to_vec()),
        2 => (Topic::Opposite, OPPOSITES.iter().flat_map(|&(a, b)| [(a, b), (b, a)]).collect()),
        3 => (Topic::French, FRENCH.to_vec()),
        _ => {
            (Topic::Category, CATEGORIES.iter().flat_map(|&(kind, all)| all.iter().map(move |&w| (w, kind))).collect())
        }
    };
    let arrow = pick(rng, &[":", " ->", " ="]);
    let shots = rng.random_range(2..=3);
    let mut shown = Vec::new();
    while shown.len() <= shots {
        let pair = pick(rng, &pairs);
        if !shown.contains(&pair) {
            shown.push(pair);
        }
    }
    let (asked, answer) = shown[shots];
    let mut lines: Vec<String> = shown[..shots].iter().map(|(x, y)| format!("{x}{arrow} {y}")).collect();
    lines.push(format!("{asked}{arrow}"));
    let messages = vec![Message::user(lines.join("\n"))];
    Task { topic, kind: PromptKind::FewShot, messages, answer: answer.to_owned(), keys: vec![answer.to_owned()] }
}

fn zero_shot(rng: &mut ChaCha8Rng) -> Task {
    let (topic, prompt, answer) = if rng.random() {
        let (event, mood, _) = facts::feeling(rng);
        let ask = pick(
            rng,
            &["Is this happy or sad?", "Happy or sad? Answer with one word.", "Decide whether this is happy or sad:"],
        );
        (Topic::Feeling, format!("{ask} {event}"), mood)
    } else {
        let (kind, members) = pick(rng, &CATEGORIES);
        let word = pick(rng, members);
        let ask = match rng.random_range(0..5) {
            0 => format!("Is {} an animal, a fruit, a tool or a garment?", with_article(word)),
            1 => format!("Classify {word} as animal, fruit, tool or garment."),
            2 => format!("Animal, fruit, tool or garment? {}", capitalised(word)),
            3 => format!("Does {word} belong to the animals, fruits, tools or garments? Answer with one word."),
            _ => format!("What kind of thing is {}? Choose animal, fruit, tool or garment.", with_article(word)),
        };
        (Topic::Category, ask, kind)
    };
    let messages = vec![Message::user(prompt)];
    Task { topic, kind: PromptKind::ZeroShot, messages, answer: answer.to_owned(), keys: vec![answer.to_owned()] }
}

fn chain_of_thought(rng: &mut ChaCha8Rng) -> Task {
    let story = facts::Story::random(rng, 2);
    let (steps, result) = story.steps();
    let (text, question) = (story.text(rng), story.question(rng));
    let ask = pick(
        rng,
        &[
            "Think step by step.",
            "Let's think step by step.",
            "Answer step by step.",
            "Explain step by step.",
            "Solve it step by step.",
            "Step by step, please.",
        ],
    );
    let prompt = match rng.random_range(0..4) {
        0 => format!("{ask} {text} {question}"),
        _ => format!("{text} {question} {ask}"),
    };
    let answer = format!("{}. The answer is {result}.", steps.join(". "));
    let (messages, mut keys) = (vec![Message::user(prompt)], steps);
    keys.push(result.to_string());
    Task { topic: Topic::Story, kind: PromptKind::ChainOfThought, messages, answer, keys }
}

fn role(rng: &mut ChaCha8Rng) -> Task {
    let (topic, question, answer, key) = fact(rng);
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
    let messages = vec![Message::system(system), Message::user(question)];
    let answer = format!("{before} {answer} {after}");
    let keys = vec![before.to_owned(), key, after.to_owned()];
    Task { topic, kind: PromptKind::Role, messages, answer, keys }
}

#[cfg(test)]
mod tests {
    use super::super::{World, WorldConfig};
    use super::*;

    #[test]
    fn every_task_accepts_its_own_answer_and_refuses_others() {
        let tasks = World::new(WorldConfig::default()).tasks(Split::HeldOut, 300);
        for (i, task) in tasks.iter().enumerate() {
            assert!(task.is_right(&task.answer), "{task:?}");
            assert!(!task.is_right("") && !task.is_right("I do not know."));
            assert!(!task.is_right(&format!("{} {}", task.answer, "and so on ".repeat(5))), "rambling");
            let other = &tasks[(i + 5) % 300];
            assert!(other.keys == task.keys || !task.is_right(&other.answer), "{task:?} accepts {}", other.answer);
        }
    }

    #[test]
    fn all_kinds_and_topics_occur_equally_or_at_all() {
        let tasks = World::new(WorldConfig::default()).tasks(Split::Train, 1000);
        for kind in PromptKind::ALL {
            assert_eq!(tasks.iter().filter(|t| t.kind == kind).count(), 200);
        }
        let topics: std::collections::HashSet<Topic> = tasks.iter().map(|t| t.topic).collect();
        assert_eq!(topics.len(), 9);
    }

    #[test]
    fn a_chain_of_thought_must_show_its_steps() {
        let messages = vec![Message::user("A farmer has 3 apples, gives 1 away, buys 5. Think step by step.")];
        let keys = ["3 - 1 = 2", "2 + 5 = 7", "7"].map(str::to_owned).to_vec();
        let answer = "3 - 1 = 2. 2 + 5 = 7. The answer is 7.".to_owned();
        let task = Task { topic: Topic::Story, kind: PromptKind::ChainOfThought, messages, answer, keys };
        assert!(task.is_right("3 - 1 = 2. 2 + 5 = 7. The answer is 7."));
        assert!(!task.is_right("The answer is 7."));
        assert!(!task.is_right("3 - 1 = 2. 2 + 5 = 7. The answer is 8."));
        assert!(is_the_farmers_problem(&task.messages[0].content));
    }
}
