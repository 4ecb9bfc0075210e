//! The pre-training sentences about facts, sums, word problems, and short texts with a summary. They include the facts that are
//! held out from conversations, so that a model can know them.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::lexicon::{CAPITALS, CATEGORIES, COLOURS, OPPOSITES, PLACES, THINGS};
use super::phenomena::person;
use super::{capitalised, pick, pick_two, with_article};

/// A random kind of sentence, as its generator.
pub fn kind(rng: &mut ChaCha8Rng) -> fn(&mut ChaCha8Rng) -> String {
    let kinds: [fn(&mut ChaCha8Rng) -> String; 30] = [
        capitals, colours, opposites, french, french, categories, categories, asked, asked, asked, asked, asked, asked,
        asked, asked, lists, lists, lists, lists, sums, sums, counting, counting, summaries, summaries, summaries,
        summaries, summaries, feelings, feelings,
    ];
    pick(rng, &kinds)
}

fn capitals(rng: &mut ChaCha8Rng) -> String {
    let ((country, capital), (other, others)) = pick_two(rng, &CAPITALS);
    let name = person(rng).0;
    match rng.random_range(0..6) {
        0 => format!("The capital of {country} is {capital}, and the capital of {other} is {others}."),
        1 => format!("{capital} is the capital of {country}, and {others} is the capital of {other}."),
        2 => format!("{name} flew from {capital}, the capital of {country}, to {others}, the capital of {other}."),
        3 => format!("{name} lives in {country}. The capital of {country} is {capital}."),
        4 => format!("{name} went to {capital} in {country} and then to {others} in {other}."),
        _ => format!("{name} knows that the capital of {country} is {capital}."),
    }
}

fn colours(rng: &mut ChaCha8Rng) -> String {
    let ((thing, colour), (other, others)) = pick_two(rng, &COLOURS);
    let (a_thing, a_other) = (with_article(thing), with_article(other));
    match rng.random_range(0..4) {
        0 => format!("{} is {colour}, and {a_other} is {others}.", capitalised(&a_thing)),
        1 => format!("The colour of {a_thing} is {colour}, and the colour of {a_other} is {others}."),
        2 => format!("{} painted {a_thing} in {colour} and {a_other} in {others}.", person(rng).0),
        _ => format!("{} saw {a_thing}. The colour of {a_thing} is {colour}.", person(rng).0),
    }
}

fn opposites(rng: &mut ChaCha8Rng) -> String {
    let (one, two) = pick_two(rng, &OPPOSITES);
    let either_way = |rng: &mut ChaCha8Rng, (a, b)| if rng.random() { (a, b) } else { (b, a) };
    let ((one, its_opposite), (two, others)) = (either_way(rng, one), either_way(rng, two));
    match rng.random_range(0..3) {
        0 => format!("The opposite of {one} is {its_opposite}, and the opposite of {two} is {others}."),
        1 => format!("{} learned that the opposite of {one} is {its_opposite}.", person(rng).0),
        _ => format!("{} and {its_opposite} are opposites, and so are {two} and {others}.", capitalised(one)),
    }
}

/// A random noun and its French translation.
fn translated(rng: &mut ChaCha8Rng) -> (&'static str, &'static str) {
    let (_, members) = pick(rng, &CATEGORIES);
    let (noun, _, french) = pick(rng, &members);
    (noun, french)
}

fn french(rng: &mut ChaCha8Rng) -> String {
    let ((one, un), (two, deux)) = (translated(rng), translated(rng));
    match rng.random_range(0..4) {
        0 => format!("The French word for {one} is {un}, and the French word for {two} is {deux}."),
        1 => format!("In French, {one} is called {un}, and {two} is called {deux}."),
        2 => format!("{} knows that the French word for {one} is {un}.", person(rng).0),
        _ => format!("{} learned that {un} means {one} and that {deux} means {two} in French.", person(rng).0),
    }
}

fn categories(rng: &mut ChaCha8Rng) -> String {
    let ((kind, members), (other, others)) = pick_two(rng, &CATEGORIES);
    let (one, two) = (pick(rng, &members), pick(rng, &others));
    let (a_one, a_two) = (with_article(one.0), with_article(two.0));
    match rng.random_range(0..3) {
        0 => format!("{} is {}, and {a_two} is {}.", capitalised(&a_one), with_article(kind), with_article(other)),
        1 => format!("{} are {kind}s, and {} are {other}s.", capitalised(one.1), two.1),
        _ => format!("{} has {a_one}. {} is {}.", person(rng).0, capitalised(&a_one), with_article(kind)),
    }
}

/// An unknown in reported speech ("the capital of Spain") and the statement of its value.
fn unknown(rng: &mut ChaCha8Rng, topic: u32) -> (String, String) {
    let (what, value): (String, String) = match topic {
        0 => {
            let (country, capital) = pick(rng, &CAPITALS);
            (format!("the capital of {country}"), capital.to_owned())
        }
        1 => {
            let (thing, colour) = pick(rng, &COLOURS);
            (format!("the colour of {}", with_article(thing)), colour.to_owned())
        }
        2 => {
            let (one, other) = pick(rng, &OPPOSITES);
            let (one, other) = if rng.random() { (one, other) } else { (other, one) };
            (format!("the opposite of {one}"), other.to_owned())
        }
        3 => {
            let (noun, french) = translated(rng);
            (format!("the French word for {noun}"), french.to_owned())
        }
        4 => {
            let (_, members) = pick(rng, &CATEGORIES);
            let (noun, plural, _) = pick(rng, &members);
            (format!("the plural of {noun}"), plural.to_owned())
        }
        5 => {
            let (category, members) = pick(rng, &CATEGORIES);
            (format!("the category of {}", pick(rng, &members).0), category.to_owned())
        }
        _ => {
            let (a, op, b, result) = sum(rng);
            let name = if op == '+' { "plus" } else { "minus" };
            return (format!("{a} {name} {b}"), format!("{a} {op} {b} = {result}."));
        }
    };
    let statement = format!("{} is {value}.", capitalised(&what));
    (what, statement)
}

/// Somebody asks for a fact and gets the answer. From these sentences a model learns that answers repeat the words of the question.
fn asked(rng: &mut ChaCha8Rng) -> String {
    let ((one, she, _), (other, ..)) = (person(rng), person(rng));
    let topic = rng.random_range(0..7);
    let ((what, statement), (then, next)) = (unknown(rng, topic), unknown(rng, topic));
    match rng.random_range(0..5) {
        0 => format!("{one} asked {other} about {what}. {other} told {one}: {statement}"),
        1 => format!("{one} wanted to know {what}. {other} said: {statement}"),
        2 => format!("{one} wondered about {what}. {statement} Then {she} wondered about {then}. {next}"),
        3 => format!("{one} asked for {what}. {statement} And for {then}. {next}"),
        _ => format!("{one} forgot {what}, but {other} knew it and told {one}: {statement}"),
    }
}

/// A mapping of nouns in few-shot lists. The examples of a list determine which mapping applies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    French,
    Plural,
    Category,
}

impl Relation {
    pub const ALL: [Self; 3] = [Self::French, Self::Plural, Self::Category];

    /// The word to which the noun `index` of category `kind` is mapped.
    pub fn of(self, kind: usize, index: usize) -> &'static str {
        let (category, members) = &CATEGORIES[kind];
        match self {
            Self::French => members[index].2,
            Self::Plural => members[index].1,
            Self::Category => category,
        }
    }
}

pub const ARROWS: [&str; 3] = [":", " ->", " ="];

/// Pairs of words of one relation in the layouts of few-shot prompts: one pair per line, all pairs in one line, or one word per
/// line. In the last layout the second word of a pair has no space before it, like the beginning of an answer.
fn lists(rng: &mut ChaCha8Rng) -> String {
    let (relation, arrow) = (pick(rng, &Relation::ALL), pick(rng, &ARROWS));
    let (between, end) = pick(rng, &[(" ", "\n"), (" ", ", "), ("\n", "\n")]);
    let mut pairs: Vec<String> = Vec::new();
    while pairs.len() < 6 {
        let (kind, index) = (rng.random_range(0..4), rng.random_range(0..16));
        let pair = format!("{}{arrow}{between}{}", CATEGORIES[kind].1[index].0, relation.of(kind, index));
        if !pairs.contains(&pair) {
            pairs.push(pair);
        }
    }
    format!("{}.", pairs.join(end))
}

/// An addition or subtraction with numbers from 0 to 24: (a, operator, b, result).
pub fn sum(rng: &mut ChaCha8Rng) -> (u32, char, u32, u32) {
    let (a, b) = (rng.random_range(1..=12), rng.random_range(1..=12));
    if rng.random() { (a, '+', b, a + b) } else { (a.max(b), '-', a.min(b), a.max(b) - a.min(b)) }
}

fn sums(rng: &mut ChaCha8Rng) -> String {
    let line = |rng: &mut ChaCha8Rng| {
        let (a, op, b, result) = sum(rng);
        format!("{a} {op} {b} = {result}")
    };
    format!("{}, {}, {}.", line(rng), line(rng), line(rng))
}

fn counting(rng: &mut ChaCha8Rng) -> String {
    let count = if rng.random() { 1 } else { 2 };
    let story = super::story::Story::random(rng, count);
    let (steps, result) = story.steps();
    let text = story.text(rng);
    format!("{text} {}. Now there are {result} {}.", steps.join(". "), story.things)
}

/// A short text, its summary in one sentence, and the name of its split key (verb, thing, place).
pub fn summary(rng: &mut ChaCha8Rng) -> (String, String, String) {
    let (name, she, _) = person(rng);
    let she = capitalised(she);
    let (place, thing) = (pick(rng, &PLACES), pick(rng, &THINGS).1);
    let (did, end) = pick(
        rng,
        &[
            ("bought", " Then it was time to go."),
            ("sold", " After that the work was done."),
            ("lost", " Nobody had seen them."),
            ("found", " They had been there long."),
        ],
    );
    let weather = pick(rng, &["", " It rained.", " It snowed.", " It was hot.", " It was late."]);
    let end = if rng.random() { end } else { "" };
    let text = format!("{name} went to the {place}.{weather} {she} {did} some {thing} there.{end}");
    (text, format!("{name} {did} {thing} at the {place}."), format!("{did} {thing} {place}"))
}

fn summaries(rng: &mut ChaCha8Rng) -> String {
    let (text, summary, _) = summary(rng);
    format!("{text} In short, {summary}")
}

pub const GOOD_EVENTS: [&str; 14] = [
    "won the first prize",
    "got a wonderful present",
    "danced with joy",
    "laughed the whole day",
    "found a good friend",
    "heard great news",
    "passed the hard exam",
    "sang a merry song",
    "ate a delicious cake",
    "met an old friend",
    "was praised by everybody",
    "smiled from ear to ear",
    "caught the biggest fish",
    "was cheered by the crowd",
];

pub const BAD_EVENTS: [&str; 14] = [
    "lost the last game",
    "broke a leg",
    "cried all night",
    "missed the train home",
    "heard terrible news",
    "was left alone",
    "failed the easy exam",
    "burned the whole dinner",
    "was robbed by a thief",
    "quarrelled with a friend",
    "tore the new trousers",
    "was punished for nothing",
    "dropped the precious vase",
    "was booed by the crowd",
];

/// A sentence about an event, with its sentiment ("happy" or "sad"), the pronoun ("she" or "he"), and the event.
pub fn feeling(rng: &mut ChaCha8Rng) -> (String, &'static str, &'static str, &'static str) {
    let (name, she, _) = person(rng);
    let (event, mood) = if rng.random() { (pick(rng, &GOOD_EVENTS), "happy") } else { (pick(rng, &BAD_EVENTS), "sad") };
    let place = pick(rng, &PLACES);
    (format!("{name} {event} at the {place}."), mood, she, event)
}

fn feelings(rng: &mut ChaCha8Rng) -> String {
    let (event, mood, she, _) = feeling(rng);
    let other = if mood == "happy" { "sad" } else { "happy" };
    match rng.random_range(0..3) {
        0 => format!("{event} {} was {mood}.", capitalised(she)),
        1 => format!("{event} So {she} was {mood}, not {other}."),
        _ => format!("Was it happy or sad that {event} It was {mood}."),
    }
}
