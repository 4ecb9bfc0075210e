//! Short dialogues of several questions; the meaning of follow-up questions depends on the previous one.

use llm_data::{ChatMessage, Conversation};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::advice::{self, Use};
use super::lexicon::{PLACES, SPOTS, THINGS, TIMES, TRAITS};
use super::pick;
use super::questions::{self, Asked};
use super::split::Split;
use super::topic::Topic;

/// Small talk: (user message, answer).
const SMALL_TALK: [(&str, &str); 10] = [
    ("Hello.", "Hello! What would you like to know?"),
    ("Good morning.", "Good morning! What would you like to know?"),
    ("Hi, how are you?", "I am fine, thank you. What would you like to know?"),
    ("Who are you?", "I am a small language model."),
    ("What can you do?", "I know capitals, colours, opposites, French words and sums, and I give advice."),
    ("Thank you.", "You are welcome."),
    ("Thanks a lot!", "You are welcome."),
    ("That was helpful.", "I am glad to hear it."),
    ("Good bye.", "Good bye!"),
    ("See you tomorrow.", "Good bye!"),
];

/// A dialogue for fine-tuning: two to four questions, follow-ups, advice questions and small talk.
pub fn conversation(rng: &mut ChaCha8Rng, seed: u64) -> Conversation {
    let mut messages = Vec::new();
    let mut before: Option<Topic> = None;
    if rng.random_range(0..3) == 0 {
        let (said, answer) = SMALL_TALK[rng.random_range(0..5)];
        messages.extend([ChatMessage::user(said), ChatMessage::assistant(answer)]);
    }
    for _ in 0..rng.random_range(2..=4) {
        let (question, answer) = match (before, rng.random_range(0..8)) {
            (_, 0) => {
                before = None;
                let (said, answer) = pick(rng, &SMALL_TALK);
                (said.to_owned(), answer.to_owned())
            }
            (_, 1) => {
                before = None;
                let question = advice::draw(rng, seed, Split::Train, Use::Conversations);
                let answer = question.any_answer(rng).messages.pop().map(|m| m.text().into_owned()).unwrap_or_default();
                (question.prompt, answer)
            }
            (Some(topic), 2..=5) => {
                let mut asked = of_topic(rng, seed, Split::Train, topic);
                (asked.follow_up.unwrap_or(asked.question), asked.answers.swap_remove(0))
            }
            _ => {
                let mut asked = questions::fact(rng, seed, Split::Train);
                before = Some(asked.topic);
                (asked.question, asked.answers.swap_remove(0))
            }
        };
        messages.extend([ChatMessage::user(question), ChatMessage::assistant(answer)]);
    }
    if rng.random_range(0..3) == 0 {
        let (said, answer) = SMALL_TALK[rng.random_range(5..10)];
        messages.extend([ChatMessage::user(said), ChatMessage::assistant(answer)]);
    }
    messages.into()
}

/// A request to repeat words, for fine-tuning: a model that can repeat any words can use the words of a question in its answer.
pub fn echo(rng: &mut ChaCha8Rng) -> Conversation {
    let thing = |rng: &mut ChaCha8Rng| {
        let (one, many) = if rng.random() { pick(rng, &THINGS) } else { pick(rng, &SPOTS) };
        if rng.random() { one } else { many }
    };
    let name = super::phenomena::person(rng).0;
    let words = match rng.random_range(0..5) {
        0 => format!("the {} {} of {name}", pick(rng, &TRAITS), thing(rng)),
        1 => format!("{name} and the {} at the {}", thing(rng), pick(rng, &PLACES)),
        2 => format!("{} {} and {} {}", rng.random_range(1..25), thing(rng), rng.random_range(1..25), thing(rng)),
        3 => format!("the {} {}", thing(rng), pick(rng, &TIMES)),
        _ => format!("{name}, {}, {} and {}", thing(rng), thing(rng), pick(rng, &PLACES)),
    };
    let ask = match rng.random_range(0..4) {
        0 => format!("Repeat after me: {words}"),
        1 => format!("Please say {words}."),
        2 => format!("Say this again: {words}"),
        _ => format!("Write {words}."),
    };
    Conversation::from(vec![ChatMessage::user(ask), ChatMessage::assistant(format!("{}.", super::capitalised(&words)))])
}

/// A question, its answer, and a follow-up question to answer; both facts are of the split.
pub fn follow_up(rng: &mut ChaCha8Rng, seed: u64, split: Split) -> (Vec<ChatMessage>, Asked) {
    let first = questions::fact(rng, seed, split);
    let second = loop {
        let second = of_topic(rng, seed, split, first.topic);
        if second.key != first.key {
            break second;
        }
    };
    let asked = second.follow_up.clone().unwrap_or_else(|| second.question.clone());
    let messages =
        vec![ChatMessage::user(&first.question), ChatMessage::assistant(&first.answers[0]), ChatMessage::user(asked)];
    (messages, second)
}

fn of_topic(rng: &mut ChaCha8Rng, seed: u64, split: Split, topic: Topic) -> Asked {
    loop {
        let asked = questions::fact(rng, seed, split);
        if asked.topic == topic {
            return asked;
        }
    }
}
