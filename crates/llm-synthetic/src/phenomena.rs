//! Sentences that need self-attention, and minimal pairs that test it (`BLiMP`, Warstadt et al. 2020, arXiv 1912.00582).
//!
//! Each frame of a phenomenon has several **cells**: prefixes that differ in one word, the deciding word, and need opposite
//! continuations. All cells of a frame are in the test, so a model without access to the deciding word has an accuracy of one
//! half. In probes the deciding word is more than four words away, out of the reach of 5-grams.

use std::ops::Range;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::lexicon::{
    ANIMAL_OUTCOMES, HOMONYMS, MEN, OBJECT_VERBS, PEOPLE, PLACES, PROFESSIONS, SCALES, SIGHTS, SPOTS, SUBJECT_VERBS,
    THING_OUTCOMES, THINGS, TIMES, TRAITS, WOMEN,
};
use super::split::SplitKey;
use super::{pick, pick_two};

/// The linguistic phenomenon of a sentence (`BLiMP`'s term).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phenomenon {
    /// "Anna praised Tom at the park after the long meeting because **he** was brave." (impressed: **she**)
    Pronoun,
    /// "The teacher who met a baker and the students at the library on a cold morning gave them a **lesson**."
    LongRange,
    /// "The key on the tables near the window **is** old." (keys: **are**)
    Agreement,
    /// "Anna saw a bat in the attic on a cold morning and then she **gave it food**." (in the field: **repaired it**)
    WordSense,
    /// "Tom was not happy at the park on a cold morning, which means that he was **sad**." (without "not": **glad**)
    Negation,
}

/// A minimal pair: a prefix with a right and a wrong continuation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The phenomenon that is tested.
    pub phenomenon: Phenomenon,
    /// The text before the continuation.
    pub prefix: String,
    /// The right continuation, with its leading space.
    pub good: String,
    /// The wrong continuation, with its leading space.
    pub bad: String,
    /// The byte range of the deciding word in `prefix`; empty if its absence decides (a sentence without "not").
    pub deciding: Range<usize>,
    /// The frame of the cell: the unit of the split and of confidence intervals.
    pub key: SplitKey,
}

impl Probe {
    /// The prefix without the deciding word; from this no predictor is better than chance.
    pub fn without_deciding(&self) -> String {
        let (before, after) = (&self.prefix[..self.deciding.start], &self.prefix[self.deciding.end..]);
        if self.deciding.is_empty() { self.prefix.clone() } else { format!("{before}{}", after.trim_start()) }
    }

    /// The sentence with its right continuation.
    pub fn sentence(&self) -> String {
        format!("{}{}", self.prefix, self.good)
    }
}

/// Builds the cells of a frame.
struct Frame {
    phenomenon: Phenomenon,
    key: SplitKey,
    cells: Vec<Probe>,
}

impl Frame {
    /// `name` contains only words that all cells of the frame have, so that all cells are in the same split.
    fn new(phenomenon: Phenomenon, name: &str) -> Self {
        Self { phenomenon, key: SplitKey::new("frame", name), cells: Vec::new() }
    }

    fn cell(&mut self, before: &str, deciding: &str, after: &str, good: &str, bad: &str, rest: &str) {
        // Without a deciding word there is only one space.
        let (word, start) = if deciding.is_empty() {
            (String::new(), before.len())
        } else {
            (format!("{deciding} "), before.len() + 1)
        };
        self.cells.push(Probe {
            phenomenon: self.phenomenon,
            prefix: format!("{before} {word}{after}"),
            good: format!(" {good}{rest}"),
            bad: format!(" {bad}{rest}"),
            deciding: start..start + deciding.len(),
            key: self.key.clone(),
        });
    }
}

impl Phenomenon {
    /// All five.
    pub const ALL: [Self; 5] = [Self::Pronoun, Self::LongRange, Self::Agreement, Self::WordSense, Self::Negation];

    /// How often each occurs in the corpus, relative to the others.
    pub(super) const FREQUENT: [Self; 14] = [
        Self::Pronoun,
        Self::Pronoun,
        Self::Pronoun,
        Self::Pronoun,
        Self::LongRange,
        Self::Agreement,
        Self::WordSense,
        Self::WordSense,
        Self::WordSense,
        Self::WordSense,
        Self::WordSense,
        Self::Negation,
        Self::Negation,
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

    /// The name of its files.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Pronoun => "pronoun",
            Self::LongRange => "long_range",
            Self::Agreement => "agreement",
            Self::WordSense => "word_sense",
            Self::Negation => "negation",
        }
    }

    /// All cells of a random frame. With `far`, as in the probes, the deciding word is out of the reach of 5-grams.
    pub(super) fn cells(self, rng: &mut ChaCha8Rng, far: bool) -> Vec<Probe> {
        let frame = match self {
            Self::Pronoun => pronoun(rng, far),
            Self::LongRange => long_range(rng, far),
            Self::Agreement => agreement(rng),
            Self::WordSense => word_sense(rng, far),
            Self::Negation => negation(rng, far),
        };
        frame.cells
    }
}

/// A name, its pronoun ("she" or "he"), and the other pronoun.
pub(super) fn person(rng: &mut ChaCha8Rng) -> (&'static str, &'static str, &'static str) {
    if rng.random() { (pick(rng, &WOMEN), "she", "he") } else { (pick(rng, &MEN), "he", "she") }
}

/// A place and a time of at least five words if `far`, else an empty text.
fn circumstances(rng: &mut ChaCha8Rng, far: bool) -> String {
    if far { format!(" at the {} {}", pick(rng, &PLACES), pick(rng, &TIMES)) } else { String::new() }
}

/// Two persons of different gender; the verb determines the referent of the pronoun (implicit causality, Garvey and Caramazza
/// 1974).
fn pronoun(rng: &mut ChaCha8Rng, far: bool) -> Frame {
    let (woman, man) = (pick(rng, &WOMEN), pick(rng, &MEN));
    let woman_first = rng.random();
    let (first, second) = if woman_first { (woman, man) } else { (man, woman) };
    let (of_first, of_second) = if woman_first { ("she", "he") } else { ("he", "she") };
    let (subject_verb, object_verb, nature) = (pick(rng, &SUBJECT_VERBS), pick(rng, &OBJECT_VERBS), pick(rng, &TRAITS));
    let after = format!("{second}{} because", circumstances(rng, far));
    let rest = format!(" was {nature}.");
    let mut frame = Frame::new(Phenomenon::Pronoun, &format!("{first} {after} {nature}"));
    frame.cell(first, subject_verb, &after, of_first, of_second, &rest);
    frame.cell(first, object_verb, &after, of_second, of_first, &rest);
    frame
}

/// The subject determines the object, not the profession in between, which may be the same or another.
fn long_range(rng: &mut ChaCha8Rng, far: bool) -> Frame {
    let (one, two) = pick_two(rng, &PROFESSIONS);
    let people = pick(rng, &PEOPLE);
    let circumstances = circumstances(rng, true);
    // All professions in the same circumstances are one frame: "met a tailor" belongs to every pair with a tailor.
    let name = format!("{people}{circumstances}{}", if far { "" } else { " near" });
    let mut frame = Frame::new(Phenomenon::LongRange, &name);
    for (subject, other) in [(one, two), (two, one)] {
        for between in [one, two] {
            let after = if far {
                format!("who met a {} and the {people}{circumstances} gave them a", between.0)
            } else {
                format!("gave the {people} a")
            };
            frame.cell("The", subject.0, &after, subject.1, other.1, ".");
        }
    }
    frame
}

/// Subject-verb agreement in number, with a singular and a plural noun between subject and verb.
fn agreement(rng: &mut ChaCha8Rng) -> Frame {
    let subject = pick(rng, &THINGS);
    let (first, second) = pick_two(rng, &SPOTS);
    let (first, second) = if rng.random() { (first.0, second.1) } else { (first.1, second.0) };
    let (on, near) = (pick(rng, &["on", "under", "by"]), pick(rng, &["near", "behind", "beside"]));
    let (one, several) = pick(rng, &[("is", "are"), ("was", "were")]);
    let state = pick(rng, &["open", "red", "old", "new", "heavy", "wet", "broken", "clean", "small", "green"]);
    let after = format!("{on} the {first} {near} the {second}");
    let rest = format!(" {state}.");
    let mut frame = Frame::new(Phenomenon::Agreement, &format!("{} {after} {one} {state}", subject.0));
    frame.cell("The", subject.0, &after, one, several, &rest);
    frame.cell("The", subject.1, &after, several, one, &rest);
    frame
}

/// Sentences that say which places are outdoors and where each animal lives; these facts determine the sense of a word.
fn outdoors_or_indoors(rng: &mut ChaCha8Rng) -> Frame {
    let (out, inside) = ("outdoors", "indoors");
    let name = person(rng).0;
    let mut frame = Frame::new(Phenomenon::WordSense, &format!("{name} lives or was"));
    if rng.random() {
        let (here, there) = (rng.random_range(0..2), rng.random_range(2..4));
        frame.cell(name, SIGHTS[here], "was", out, inside, ".");
        frame.cell(name, SIGHTS[there], "was", inside, out, ".");
    } else {
        let (one, two) = (rng.random_range(0..3), rng.random_range(3..6));
        let after = format!("of {name} is an animal that lives");
        frame.cell("The", HOMONYMS[one].word, &after, out, inside, ".");
        frame.cell("The", HOMONYMS[two].word, &after, inside, out, ".");
    }
    frame
}

/// Two words and two places: each word means the animal at one place and the thing at the other, in opposite order.
fn word_sense(rng: &mut ChaCha8Rng, far: bool) -> Frame {
    if !far && rng.random_range(0..2) == 0 {
        return outdoors_or_indoors(rng);
    }
    let is_animal = |word: usize, place: usize| HOMONYMS[word].is_animal_at(place);
    let (words, places) = loop {
        let (one, two) = pick_two(rng, &[0, 1, 2, 3, 4, 5]);
        let (here, there) = pick_two(rng, &[0, 1, 2, 3]);
        let crosswise =
            is_animal(one, here) && !is_animal(one, there) && !is_animal(two, here) && is_animal(two, there);
        if crosswise {
            break ([one, two], [here, there]);
        }
    };
    let (name, she, _) = person(rng);
    let time = if far { format!(" {}", pick(rng, &TIMES)) } else { String::new() };
    let (animal, thing) = (pick(rng, &ANIMAL_OUTCOMES), pick(rng, &THING_OUTCOMES));
    let mut frame = Frame::new(Phenomenon::WordSense, &format!("{name} saw{time}"));
    for word in words {
        for place in places {
            let after = format!("{}{time} and then {she}", SIGHTS[place]);
            let (good, bad) = if is_animal(word, place) { (animal, thing) } else { (thing, animal) };
            frame.cell(&format!("{name} saw a"), HOMONYMS[word].word, &after, good, bad, ".");
        }
    }
    frame
}

/// Four cells: an adjective from either end of a scale, with and without "not"; the conclusion is another adjective of the scale.
fn negation(rng: &mut ChaCha8Rng, far: bool) -> Frame {
    let scale = &SCALES[rng.random_range(0..SCALES.len())];
    let (subject, it) = if scale.of_people {
        let (name, she, _) = person(rng);
        (name.to_owned(), she)
    } else {
        (format!("The {} by the {}", pick(rng, &THINGS).0, pick(rng, &SPOTS).0), "it")
    };
    let [(said_high, high), (said_low, low)] = [0, 1].map(|end| pick_two(rng, &scale.ends[end]));
    let was = pick(rng, &["was", "is"]);
    let tail = if far {
        let means = pick(rng, &["which means that", "so one can say that"]);
        format!("{}, {means} {it} {was}", circumstances(rng, true))
    } else {
        format!("; {it} {was}")
    };
    let mut frame = Frame::new(Phenomenon::Negation, &format!("{subject}{tail}"));
    for (said, same, other) in [(said_high, high, low), (said_low, low, high)] {
        let (before, after) = (format!("{subject} {was}"), format!("{said}{tail}"));
        frame.cell(&before, "not", &after, other, same, ".");
        frame.cell(&before, "", &after, same, other, ".");
    }
    frame
}

#[cfg(test)]
#[path = "phenomena_tests.rs"]
mod tests;
