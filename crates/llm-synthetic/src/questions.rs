//! Questions with their right answers, without the role, examples or dialogue of a prompt.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::lexicon::{CAPITALS, CATEGORIES, COLOURS, OPPOSITES};
use super::split::{Split, SplitKey};
use super::story::Story;
use super::topic::Topic;
use super::{capitalised, facts, pick, with_article};

/// A question, its right answers, and the same fact as a sentence.
pub struct Asked {
    pub topic: Topic,
    /// The fact that is asked for.
    pub key: SplitKey,
    pub question: String,
    /// The same question after another one of the topic ("And of Spain?").
    pub follow_up: Option<String>,
    /// All right answers; the first is the one to train on.
    pub answers: Vec<String>,
    /// The beginning of a sentence, and its right continuation.
    pub cloze: (String, String),
}

/// One of this number of facts is held out.
pub const FACTS_ONE_IN: usize = 4;
pub const SUMS_ONE_IN: u64 = 5;

/// Draws items until one is of the split.
fn of_split<T>(
    rng: &mut ChaCha8Rng,
    split: Split,
    draw: impl Fn(&mut ChaCha8Rng) -> (SplitKey, Split, T),
) -> (SplitKey, T) {
    loop {
        let (key, its_split, item) = draw(rng);
        if its_split == split {
            return (key, item);
        }
    }
}

/// A random entry of a list of facts that is of the split; the first word of an entry is the name of its key.
fn entry(
    rng: &mut ChaCha8Rng,
    (seed, split): (u64, Split),
    kind: &str,
    list: &[(&'static str, &'static str)],
) -> (SplitKey, (&'static str, &'static str)) {
    of_split(rng, split, |rng| {
        let fact = pick(rng, list);
        let key = SplitKey::new(kind, fact.0);
        let among = key.split_among(list.iter().map(|(name, _)| SplitKey::new(kind, name)), seed, FACTS_ONE_IN);
        (key, among, fact)
    })
}

/// The key of a noun; it is the same for its category, plural and translation.
pub fn noun_key(kind: usize, index: usize) -> SplitKey {
    SplitKey::new("noun", CATEGORIES[kind].1[index].0)
}

/// The split of a noun; 1/4 of each category is held out.
pub fn noun_split(kind: usize, index: usize, seed: u64) -> Split {
    noun_key(kind, index).split_among((0..16).map(|other| noun_key(kind, other)), seed, FACTS_ONE_IN)
}

/// The key of a sum; `a + b` and `b + a` have the same key.
fn sum_key(a: u32, op: char, b: u32) -> SplitKey {
    let (a, b) = if op == '+' { (a.min(b), a.max(b)) } else { (a, b) };
    SplitKey::new("sum", format!("{a}{op}{b}"))
}

/// A question about one fact.
pub fn fact(rng: &mut ChaCha8Rng, seed: u64, split: Split) -> Asked {
    match rng.random_range(0..5) {
        0 => capital(rng, seed, split),
        1 => colour(rng, seed, split),
        2 => opposite(rng, seed, split),
        3 => french(rng, seed, split),
        _ => sum(rng, seed, split),
    }
}

pub fn capital(rng: &mut ChaCha8Rng, seed: u64, split: Split) -> Asked {
    let (key, (country, capital)) = entry(rng, (seed, split), "capital", &CAPITALS);
    let question = match rng.random_range(0..6) {
        0 => format!("What is the capital of {country}?"),
        1 => format!("Name the capital of {country}."),
        2 => format!("Which city is the capital of {country}?"),
        3 => format!("Tell me the capital of {country}."),
        4 => format!("What is {country}'s capital?"),
        _ => format!("Do you know the capital of {country}?"),
    };
    Asked {
        topic: Topic::Capital,
        key,
        question,
        follow_up: Some(format!("And of {country}?")),
        answers: vec![
            format!("The capital of {country} is {capital}."),
            format!("{capital} is the capital of {country}."),
            capital.to_owned(),
        ],
        cloze: (format!("The capital of {country} is"), capital.to_owned()),
    }
}

fn colour(rng: &mut ChaCha8Rng, seed: u64, split: Split) -> Asked {
    let (key, (thing, colour)) = entry(rng, (seed, split), "colour", &COLOURS);
    let thing = with_article(thing);
    let question = match rng.random_range(0..5) {
        0 => format!("What colour is {thing}?"),
        1 => format!("What is the colour of {thing}?"),
        2 => format!("Which colour does {thing} have?"),
        3 => format!("Tell me the colour of {thing}."),
        _ => format!("Name the colour of {thing}."),
    };
    Asked {
        topic: Topic::Colour,
        key,
        question,
        follow_up: Some(format!("And of {thing}?")),
        answers: vec![
            format!("The colour of {thing} is {colour}."),
            format!("{} is {colour}.", capitalised(&thing)),
            colour.to_owned(),
        ],
        cloze: (format!("The colour of {thing} is"), colour.to_owned()),
    }
}

fn opposite(rng: &mut ChaCha8Rng, seed: u64, split: Split) -> Asked {
    let (key, (one, other)) = entry(rng, (seed, split), "opposite", &OPPOSITES);
    // Both directions have the same key.
    let (word, opposite) = if rng.random() { (one, other) } else { (other, one) };
    let question = match rng.random_range(0..4) {
        0 => format!("What is the opposite of {word}?"),
        1 => format!("Name the opposite of {word}."),
        2 => format!("Tell me the opposite of {word}."),
        _ => format!("Which word is the opposite of {word}?"),
    };
    Asked {
        topic: Topic::Opposite,
        key,
        question,
        follow_up: Some(format!("And of {word}?")),
        answers: vec![format!("The opposite of {word} is {opposite}."), opposite.to_owned()],
        cloze: (format!("The opposite of {word} is"), opposite.to_owned()),
    }
}

/// A noun of the split: its key, and the indices of its category and of the noun in it.
pub fn noun(rng: &mut ChaCha8Rng, seed: u64, split: Split) -> (SplitKey, (usize, usize)) {
    of_split(rng, split, |rng| {
        let (kind, index) = (rng.random_range(0..CATEGORIES.len()), rng.random_range(0..16));
        (noun_key(kind, index), noun_split(kind, index, seed), (kind, index))
    })
}

fn french(rng: &mut ChaCha8Rng, seed: u64, split: Split) -> Asked {
    let (key, (kind, index)) = noun(rng, seed, split);
    let (english, _, french) = CATEGORIES[kind].1[index];
    let question = match rng.random_range(0..5) {
        0 => format!("What is the French word for {english}?"),
        1 => format!("Translate {english} into French."),
        2 => format!("How do you say {english} in French?"),
        3 => format!("Tell me the French word for {english}."),
        _ => format!("What is {english} in French?"),
    };
    Asked {
        topic: Topic::French,
        key,
        question,
        follow_up: Some(format!("And for {english}?")),
        answers: vec![format!("The French word for {english} is {french}."), french.to_owned()],
        cloze: (format!("The French word for {english} is"), french.to_owned()),
    }
}

fn sum(rng: &mut ChaCha8Rng, seed: u64, split: Split) -> Asked {
    let (key, (a, op, b, result)) = of_split(rng, split, |rng| {
        let (a, op, b, result) = facts::sum(rng);
        let key = sum_key(a, op, b);
        let its_split = key.split(seed, SUMS_ONE_IN);
        (key, its_split, (a, op, b, result))
    });
    let name = if op == '+' { "plus" } else { "minus" };
    let question = match rng.random_range(0..4) {
        0 => format!("What is {a} {name} {b}?"),
        1 => format!("How much is {a} {op} {b}?"),
        2 => format!("Compute {a} {op} {b}."),
        _ => format!("What is {a} {op} {b}?"),
    };
    Asked {
        topic: Topic::Sum,
        key,
        question,
        follow_up: Some(format!("And {a} {name} {b}?")),
        answers: vec![format!("{a} {op} {b} = {result}."), result.to_string()],
        cloze: (format!("{a} {op} {b} ="), result.to_string()),
    }
}

/// A word problem of the split. Those of the training split have no step that is a held-out sum.
pub fn story(rng: &mut ChaCha8Rng, seed: u64, split: Split) -> Asked {
    let story = loop {
        let story = Story::random(rng, 2);
        let is_known = |step: &String| {
            let mut parts = step.split(' ');
            let (a, op, b) = (parts.next(), parts.next(), parts.next());
            let number = |text: Option<&str>| text.and_then(|n| n.parse().ok()).unwrap_or(0);
            let op = if op == Some("+") { '+' } else { '-' };
            sum_key(number(a), op, number(b)).split(seed, SUMS_ONE_IN) == Split::Train
        };
        let trainable = story.steps().0.iter().all(is_known);
        if story.key().split(seed, SUMS_ONE_IN) == split && (split == Split::HeldOut || trainable) {
            break story;
        }
    };
    let (steps, result) = story.steps();
    let (text, question) = (story.text(rng), story.question(rng));
    let ask = pick(
        rng,
        &[
            "Think step by step.",
            "Answer step by step.",
            "Explain step by step.",
            "Go step by step.",
            "Step by step, please.",
        ],
    );
    let prompt = match rng.random_range(0..2) {
        0 => format!("{ask} {text} {question}"),
        _ => format!("{text} {question} {ask}"),
    };
    let steps = steps.join(". ");
    Asked {
        topic: Topic::Story,
        key: story.key(),
        question: prompt,
        follow_up: None,
        answers: vec![format!("{steps}. The answer is {result}.")],
        cloze: (text, format!("{steps}.")),
    }
}

pub fn summary(rng: &mut ChaCha8Rng, seed: u64, split: Split) -> Asked {
    let (key, (text, summary)) = of_split(rng, split, |rng| {
        let (text, summary, name) = facts::summary(rng);
        let key = SplitKey::new("summary", name);
        let its_split = key.split(seed, SUMS_ONE_IN);
        (key, its_split, (text, summary))
    });
    let ask = pick(rng, &["Summarize this text.", "Sum it up.", "What is that in short?"]);
    Asked {
        topic: Topic::Summary,
        key,
        question: format!("{text} {ask}"),
        follow_up: None,
        answers: vec![summary.clone()],
        cloze: (format!("{text} In short,"), summary),
    }
}

/// A classification: one word of a closed class is right, alone or in a sentence.
pub fn class(rng: &mut ChaCha8Rng, seed: u64, split: Split) -> Asked {
    if rng.random() { feeling(rng, seed, split) } else { category(rng, seed, split) }
}

fn feeling(rng: &mut ChaCha8Rng, seed: u64, split: Split) -> Asked {
    let (key, (sentence, mood, she)) = of_split(rng, split, |rng| {
        let (sentence, mood, she, event) = facts::feeling(rng);
        let key = SplitKey::new("event", event);
        let events = if mood == "happy" { facts::GOOD_EVENTS } else { facts::BAD_EVENTS };
        let its_split = key.split_among(events.map(|event| SplitKey::new("event", event)), seed, FACTS_ONE_IN);
        (key, its_split, (sentence, mood, she))
    });
    let ask = pick(rng, &["Is this happy or sad?", "Happy or sad?", "Decide whether this is happy or sad:"]);
    Asked {
        topic: Topic::Feeling,
        key,
        question: format!("{ask} {sentence}"),
        follow_up: None,
        answers: vec![format!("It was {mood}."), mood.to_owned()],
        cloze: (format!("{sentence} {} was", capitalised(she)), mood.to_owned()),
    }
}

fn category(rng: &mut ChaCha8Rng, seed: u64, split: Split) -> Asked {
    let (key, (kind, index)) = noun(rng, seed, split);
    let (category, members) = &CATEGORIES[kind];
    let word = members[index].0;
    let question = match rng.random_range(0..5) {
        0 => format!("Is {} animal, fruit, tool or garment?", with_article(word)),
        1 => format!("Classify {word} as animal, fruit, tool or garment."),
        2 => format!("Animal, fruit, tool or garment? {}", capitalised(word)),
        3 => format!("Does {word} belong to animals, fruits, tools or garments?"),
        _ => format!("What kind of thing is {}? Choose animal, fruit, tool or garment.", with_article(word)),
    };
    Asked {
        topic: Topic::Category,
        key,
        question,
        follow_up: None,
        answers: vec![
            format!("{} is {}.", capitalised(&with_article(word)), with_article(category)),
            (*category).to_owned(),
        ],
        cloze: (format!("{} is", capitalised(&with_article(word))), with_article(category)),
    }
}
