//! Sentences for what self-attention is for, and the minimal pairs that ask whether it was learnt.
//!
//! In each of them what follows a prefix hangs on a word further back, and both continuations are equally frequent in
//! the corpus: who counts words, or looks one word back only, is right half of the time.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::lexicon::{HOMONYMS, MEN, NEGATIONS, Noun, PEOPLE, PLACES, PROFESSIONS, SPOTS, THINGS, TIMES, WOMEN};
use super::{pick, pick_two};

/// What a sentence exercises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phenomenon {
    /// "She poured water into the glasses and drank it."
    Pronoun,
    /// "The teacher who met the baker and the students at the library before the lecture gave them a lesson."
    LongRange,
    /// "The book on the tables near the windows is open."
    Agreement,
    /// "Anna went to the bank with a fishing rod and caught fish."
    WordSense,
    /// "Tom was not happy, which means that he was unhappy."
    Negation,
}

/// Two continuations of one prefix, one right and one wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What is asked for.
    pub phenomenon: Phenomenon,
    /// The text before.
    pub prefix: String,
    /// The right continuation, with its leading space.
    pub good: String,
    /// The wrong continuation, with its leading space.
    pub bad: String,
}

/// A sentence with the place where its phenomenon decides.
pub(super) struct Sentence {
    prefix: String,
    good: String,
    bad: String,
    rest: String,
    /// Whether a distractor stands between: only such sentences serve as probes.
    pub hard: bool,
}

impl Sentence {
    fn new(prefix: String, good: &str, bad: &str, rest: &str, hard: bool) -> Self {
        Self { prefix, good: good.to_owned(), bad: bad.to_owned(), rest: rest.to_owned(), hard }
    }

    pub fn text(&self) -> String {
        format!("{} {}{}", self.prefix, self.good, self.rest)
    }

    pub fn probe(self, phenomenon: Phenomenon) -> Probe {
        let (good, bad) = (format!(" {}{}", self.good, self.rest), format!(" {}{}", self.bad, self.rest));
        Probe { phenomenon, prefix: self.prefix, good, bad }
    }
}

impl Phenomenon {
    /// All five.
    pub const ALL: [Self; 5] = [Self::Pronoun, Self::LongRange, Self::Agreement, Self::WordSense, Self::Negation];

    /// How often each occurs in the corpus, relative to the others.
    pub(super) const FREQUENT: [Self; 8] = [
        Self::Pronoun,
        Self::Pronoun,
        Self::Pronoun,
        Self::LongRange,
        Self::LongRange,
        Self::Agreement,
        Self::WordSense,
        Self::Negation,
    ];

    /// Its name in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pronoun => "pronoun reference",
            Self::LongRange => "long-range dependency",
            Self::Agreement => "subject-verb agreement",
            Self::WordSense => "word sense",
            Self::Negation => "negation",
        }
    }

    pub(super) fn sentence(self, rng: &mut ChaCha8Rng) -> Sentence {
        match self {
            Self::Pronoun => pronoun(rng),
            Self::LongRange => long_range(rng),
            Self::Agreement => agreement(rng),
            Self::WordSense => word_sense(rng),
            Self::Negation => negation(rng),
        }
    }
}

/// A person's name, "she" or "he", and the other pronoun.
pub(super) fn person(rng: &mut ChaCha8Rng) -> (&'static str, &'static str, &'static str) {
    if rng.random() { (pick(rng, &WOMEN), "she", "he") } else { (pick(rng, &MEN), "he", "she") }
}

/// One or several of a noun, and whether it is several.
fn number(rng: &mut ChaCha8Rng, noun: Noun) -> (&'static str, bool) {
    if rng.random() { (noun.1, true) } else { (noun.0, false) }
}

fn pronoun(rng: &mut ChaCha8Rng) -> Sentence {
    let (name, she, he) = person(rng);
    match rng.random_range(0..7) {
        0 => {
            let (noun, many) = {
                let noun = pick(rng, &THINGS);
                number(rng, noun)
            };
            let (spot, spots) = {
                let noun = pick(rng, &SPOTS);
                number(rng, noun)
            };
            let take = pick(rng, &["took", "brought", "lifted", "pulled"]);
            let then = pick(rng, &["washed", "carried", "sold", "painted", "hid", "kept", "moved", "cleaned"]);
            let prefix = format!("{name} {take} the {noun} from the {spot} and {then}");
            let (good, bad) = if many { ("them", "it") } else { ("it", "them") };
            Sentence::new(prefix, good, bad, ".", many != spots)
        }
        1 => {
            let drink = pick(rng, &["water", "milk", "tea", "juice"]);
            let (glass, many) = pick(rng, &[("glass", false), ("glasses", true), ("cup", false), ("cups", true)]);
            let subject = if rng.random() { name } else { &super::capitalised(she) };
            let poured = format!("{subject} poured {drink} into the {glass} and");
            if rng.random() {
                let then = pick(rng, &["drank", "tasted"]);
                Sentence::new(format!("{poured} {then}"), "it", "them", ".", many)
            } else {
                // The glass is what one puts somewhere.
                let then = pick(rng, &["left", "placed"]);
                let (good, bad) = if many { ("them", "it") } else { ("it", "them") };
                Sentence::new(format!("{poured} {then}"), good, bad, " on the table.", many)
            }
        }
        2 | 3 => {
            let did = pick(rng, &["smiled", "laughed", "cried", "sang", "slept"]);
            let (said, felt) = pick(rng, &[("because", "was happy"), ("when", "was tired"), ("and", "was not sad")]);
            Sentence::new(format!("{name} {did} {said}"), she, he, &format!(" {felt}."), false)
        }
        _ => {
            let place = pick(rng, &PLACES);
            let went = pick(rng, &["walked", "drove", "ran", "hurried"]);
            let wish = pick(rng, &["rest", "meet a friend", "buy bread", "hear a story", "work", "see the animals"]);
            let prefix = format!("{name} {went} to the {place} because");
            Sentence::new(prefix, she, he, &format!(" wanted to {wish}."), true)
        }
    }
}

fn long_range(rng: &mut ChaCha8Rng) -> Sentence {
    let ((who, gives), (other, others_gift)) = pick_two(rng, &PROFESSIONS);
    let (people, place, time) = (pick(rng, &PEOPLE), pick(rng, &PLACES), pick(rng, &TIMES));
    // Short, with one profession, and in full.
    let (prefix, hard) = match rng.random_range(0..4) {
        0 => (format!("The {who} gave the {people} a"), false),
        1 => (format!("The {who} who met the {people} at the {place} {time} gave them a"), false),
        _ => (format!("The {who} who met the {other} and the {people} at the {place} {time} gave them a"), true),
    };
    Sentence::new(prefix, gives, others_gift, ".", hard)
}

fn agreement(rng: &mut ChaCha8Rng) -> Sentence {
    let (subject, many) = {
        let noun = pick(rng, &THINGS);
        number(rng, noun)
    };
    let (first, second) = pick_two(rng, &SPOTS);
    let (first, _) = number(rng, first);
    let (second, second_many) = number(rng, second);
    let (on, near) = (pick(rng, &["on", "under", "by"]), pick(rng, &["near", "behind", "beside"]));
    let (one, several) = pick(rng, &[("is", "are"), ("was", "were")]);
    let state = pick(rng, &["open", "red", "old", "new", "heavy", "wet", "broken", "clean", "small", "green"]);
    let prefix = format!("The {subject} {on} the {first} {near} the {second}");
    let (good, bad) = if many { (several, one) } else { (one, several) };
    Sentence::new(prefix, good, bad, &format!(" {state}."), many != second_many)
}

fn word_sense(rng: &mut ChaCha8Rng) -> Sentence {
    let homonym = &HOMONYMS[rng.random_range(0..HOMONYMS.len())];
    let meaning = rng.random_range(0..2);
    let (right, wrong) = (&homonym.meanings[meaning], &homonym.meanings[1 - meaning]);
    let (name, ..) = person(rng);
    let prefix = format!("{name} {} {} and", homonym.frame, pick(rng, &right.cues));
    let prefix = if homonym.word == "trunk" { format!("{prefix} then") } else { prefix };
    Sentence::new(prefix, pick(rng, &right.outcomes), pick(rng, &wrong.outcomes), ".", true)
}

fn negation(rng: &mut ChaCha8Rng) -> Sentence {
    let (plus, minus, of_people) = pick(rng, &NEGATIONS);
    let (subject, it) = if of_people {
        let (name, she, _) = person(rng);
        (name.to_owned(), she)
    } else {
        (format!("The {} by the {}", pick(rng, &THINGS).0, pick(rng, &SPOTS).0), "it")
    };
    // Either word of the pair may come first, so that neither of them is the usual one after "not".
    let (said, other) = if rng.random() { (plus, minus) } else { (minus, plus) };
    let time = pick(rng, &["", " today", " that evening", " in the morning", " at first", " all week"]);
    let (was, means) = (pick(rng, &["was", "seemed"]), pick(rng, &["which means that", "in other words", "so"]));
    if rng.random() {
        let not = if was == "was" { "was not" } else { "did not seem" };
        Sentence::new(format!("{subject} {not} {said}{time}, {means} {it} was"), other, said, ".", true)
    } else {
        Sentence::new(format!("{subject} {was} {said}{time}, {means} {it} was not"), other, said, ".", true)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::{Split, World, WorldConfig};
    use super::*;

    /// What a model that knows only how often a word follows another would score.
    #[test]
    fn counting_pairs_of_words_does_not_solve_the_probes() {
        let world = World::new(WorldConfig { corpus_bytes: 1_000_000, ..WorldConfig::default() });
        let mut counts: HashMap<(String, String), u32> = HashMap::new();
        for document in world.corpus(Split::Train) {
            let words: Vec<&str> = document.split(' ').collect();
            for pair in words.windows(2) {
                *counts.entry((pair[0].to_owned(), pair[1].to_owned())).or_default() += 1;
            }
        }
        for phenomenon in Phenomenon::ALL {
            let probes = world.probes(phenomenon, 500);
            let right = probes.iter().filter(|probe| {
                let last = probe.prefix.split(' ').next_back().unwrap().to_owned();
                let count = |next: &str| {
                    let next = next.trim_start().split(' ').next().unwrap().to_owned();
                    counts.get(&(last.clone(), next)).copied().unwrap_or(0)
                };
                count(&probe.good) > count(&probe.bad)
            });
            let share = right.count() as f64 / 500.;
            assert!(share < 0.68, "{phenomenon:?}: {share}");
        }
    }

    #[test]
    fn good_and_bad_differ_and_are_both_words_of_the_corpus() {
        let world = World::new(WorldConfig { corpus_bytes: 1_000_000, ..WorldConfig::default() });
        let corpus = world.corpus(Split::Train).join(" ");
        for phenomenon in Phenomenon::ALL {
            let probes = world.probes(phenomenon, 200);
            assert!(probes.iter().all(|p| p.good != p.bad && p.phenomenon == phenomenon));
            let missing = probes.iter().find(|p| !corpus.contains(p.bad.trim_end_matches('.')));
            assert!(missing.is_none(), "{missing:?}");
        }
    }

    #[test]
    fn at_least_eight_words_have_two_senses() {
        assert!(HOMONYMS.len() >= 8);
        assert!(HOMONYMS.iter().all(|h| h.frame.contains(h.word)));
    }
}
