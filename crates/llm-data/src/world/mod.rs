//! The built-in world: a small closed English of our own words, generated from a seed, on which a tiny model can
//! learn everything that this project teaches in minutes.
//!
//! It holds stories and statements for what self-attention is for ([`Phenomenon`]), facts, translations, arithmetic and
//! summaries, two domains ([`Domain`]), questions in the five kinds of prompts ([`Task`]), and questions whose answers
//! differ in quality ([`Question`]), with the truth known everywhere.
//!
//! Train and held-out are split **by combination**: every sentence is drawn from many combinations of few words, and a
//! hash of the finished sentence says to which split it belongs. A held-out sentence therefore never occurs in
//! training, while all of its words do.
//!
//! ```
//! use llm_data::world::{Phenomenon, Split, World, WorldConfig};
//!
//! let world = World::new(WorldConfig { corpus_bytes: 10_000, ..WorldConfig::default() });
//! let documents = world.corpus(Split::Train);
//! assert!(documents.iter().map(String::len).sum::<usize>() >= 10_000);
//! let probe = &world.probes(Phenomenon::Agreement, 1)[0];
//! assert_ne!(probe.good, probe.bad); // " is" and " are", say, after the same prefix
//! ```

mod domains;
mod facts;
mod lexicon;
mod phenomena;
mod preference;
mod tasks;

pub use domains::Domain;
pub use phenomena::{Phenomenon, Probe};
pub use preference::{Answer, Question, Utility};
pub use tasks::{PromptKind, Task, Topic};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::Conversation;

/// The size and the seed of a [`World`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorldConfig {
    /// The same seed gives the same bytes.
    pub seed: u64,
    /// Size of the training corpus in bytes; the held-out corpus is a twentieth of it.
    pub corpus_bytes: usize,
}

impl Default for WorldConfig {
    fn default() -> Self {
        Self { seed: 42, corpus_bytes: 6_000_000 }
    }
}

/// Which side of the split a text is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// For learning.
    Train,
    /// For testing; its combinations never occur in training.
    HeldOut,
}

/// The generator of everything in the built-in world.
#[derive(Debug, Clone)]
pub struct World {
    config: WorldConfig,
}

impl World {
    /// A world of that seed and size.
    pub fn new(config: WorldConfig) -> Self {
        Self { config }
    }

    /// Documents for pre-training: half of them exercise the five phenomena (the harder ones more often), the others
    /// tell facts and stories.
    pub fn corpus(&self, split: Split) -> Vec<String> {
        let mut rng = self.rng(1, split);
        let bytes = if split == Split::Train { self.config.corpus_bytes } else { self.config.corpus_bytes / 20 };
        let (mut documents, mut size) = (Vec::new(), 0);
        while size < bytes {
            let phenomenon = Phenomenon::FREQUENT.get(rng.random_range(0..2 * Phenomenon::FREQUENT.len()));
            let fact = facts::kind(&mut rng);
            let sentences = 1 + rng.random_range(0..4);
            let document: Vec<String> = (0..sentences)
                .map(|_| match phenomenon {
                    Some(phenomenon) => draw(&mut rng, split, |rng| phenomenon.sentence(rng).text()),
                    None => draw(&mut rng, split, fact),
                })
                .collect();
            let document = document.join(" ");
            size += document.len() + 1;
            documents.push(document);
        }
        documents
    }

    /// Documents of a special subject with its own vocabulary, for domain fine-tuning.
    pub fn domain(&self, domain: Domain, split: Split, documents: usize) -> Vec<String> {
        let mut rng = self.rng(10 + domain as u64, split);
        let document =
            |_| (0..3).map(|_| draw(&mut rng, split, |rng| domain.sentence(rng))).collect::<Vec<_>>().join(" ");
        (0..documents).map(document).collect()
    }

    /// Held-out minimal pairs of one phenomenon.
    pub fn probes(&self, phenomenon: Phenomenon, count: usize) -> Vec<Probe> {
        let mut rng = self.rng(20 + phenomenon as u64, Split::HeldOut);
        let mut probes = Vec::with_capacity(count);
        while probes.len() < count {
            let sentence = phenomenon.sentence(&mut rng);
            if sentence.hard && split_of(&sentence.text()) == Split::HeldOut {
                probes.push(sentence.probe(phenomenon));
            }
        }
        probes
    }

    /// Questions with a known answer, as many of each kind of prompt.
    pub fn tasks(&self, split: Split, count: usize) -> Vec<Task> {
        let mut rng = self.rng(30, split);
        (0..count).map(|i| tasks::draw(&mut rng, split, PromptKind::ALL[i % PromptKind::ALL.len()])).collect()
    }

    /// Questions that ask for advice, with four answers each of known utility.
    pub fn questions(&self, split: Split, count: usize) -> Vec<Question> {
        let mut rng = self.rng(40, split);
        (0..count).map(|_| preference::draw(&mut rng, split)).collect()
    }

    /// What a crowd answers to such questions: good and bad answers alike, as found in the wild. A model that is
    /// fine-tuned on them answers like the crowd; what people prefer is learnt later.
    pub fn crowd(&self, count: usize) -> Vec<Conversation> {
        let mut rng = self.rng(50, Split::Train);
        (0..count).map(|_| preference::draw(&mut rng, Split::Train).any_answer(&mut rng)).collect()
    }

    fn rng(&self, stream: u64, split: Split) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.config.seed);
        rng.set_stream(2 * stream + u64::from(split == Split::HeldOut));
        rng
    }
}

/// The split of a finished sentence: a tenth of all combinations is held out (FNV-1a of its bytes), and so are the two
/// questions that the guide asks.
fn split_of(text: &str) -> Split {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let asked_in_the_guide = text == "What is the capital of France?" || tasks::is_the_farmers_problem(text);
    if (hash >> 20).is_multiple_of(10) || asked_in_the_guide { Split::HeldOut } else { Split::Train }
}

/// Draws sentences until one is of the wanted split.
fn draw(rng: &mut ChaCha8Rng, split: Split, sentence: impl Fn(&mut ChaCha8Rng) -> String) -> String {
    loop {
        let text = sentence(rng);
        if split_of(&text) == split {
            return text;
        }
    }
}

fn pick<T: Copy>(rng: &mut ChaCha8Rng, list: &[T]) -> T {
    list[rng.random_range(0..list.len())]
}

/// Two different entries.
fn pick_two<T: Copy>(rng: &mut ChaCha8Rng, list: &[T]) -> (T, T) {
    let first = rng.random_range(0..list.len());
    let second = (first + rng.random_range(1..list.len())) % list.len();
    (list[first], list[second])
}

/// The text with a capital first letter.
fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// The noun with "a" or "an".
fn with_article(noun: &str) -> String {
    let article = if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {noun}")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn small() -> World {
        World::new(WorldConfig { corpus_bytes: 2_000_000, ..WorldConfig::default() })
    }

    fn words<'a>(texts: impl IntoIterator<Item = &'a String>) -> HashSet<String> {
        let words = texts.into_iter().flat_map(|text| text.split(|c: char| !c.is_alphanumeric()));
        words.map(str::to_lowercase).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_world_and_another_seed_another() {
        let world = |seed| World::new(WorldConfig { seed, corpus_bytes: 20_000 });
        assert_eq!(world(1).corpus(Split::Train), world(1).corpus(Split::Train));
        assert_ne!(world(1).corpus(Split::Train), world(2).corpus(Split::Train));
        assert_eq!(world(1).tasks(Split::HeldOut, 20), world(1).tasks(Split::HeldOut, 20));
    }

    #[test]
    fn held_out_texts_never_occur_in_training_but_their_words_do() {
        let world = small();
        let (train, held_out) = (world.corpus(Split::Train), world.corpus(Split::HeldOut));
        let seen = words(&train);
        let unseen: Vec<String> = words(&held_out).difference(&seen).cloned().collect();
        assert!(unseen.is_empty(), "words only in the held-out corpus: {unseen:?}");
        assert!(seen.len() < 1000, "the world is closed: {} words", seen.len());
        let train = train.join("\n");
        for phenomenon in Phenomenon::ALL {
            for probe in world.probes(phenomenon, 100) {
                let sentence = format!("{}{}", probe.prefix, probe.good);
                assert!(!train.contains(&sentence), "{sentence}");
            }
        }
        let known: HashSet<&str> = train.split_inclusive(['.', '\n']).map(str::trim).collect();
        let leaked = held_out.iter().filter(|document| known.contains(document.as_str())).count();
        assert_eq!(leaked, 0, "one-sentence documents of the held-out corpus that training holds");
    }

    #[test]
    fn held_out_tasks_and_questions_are_new_prompts_of_known_words() {
        let world = small();
        let text = |task: &Task| task.messages.iter().map(|m| m.content.clone()).collect::<Vec<_>>().join("\n");
        let train: Vec<String> = world.tasks(Split::Train, 8000).iter().map(text).collect();
        let held_out: Vec<String> = world.tasks(Split::HeldOut, 500).iter().map(text).collect();
        let seen: HashSet<&String> = train.iter().collect();
        assert!(held_out.iter().all(|prompt| !seen.contains(prompt)));
        let unseen: Vec<String> = words(&held_out).difference(&words(&train)).cloned().collect();
        assert!(unseen.is_empty(), "{unseen:?}");
        let train: HashSet<String> = world.questions(Split::Train, 3000).into_iter().map(|q| q.prompt).collect();
        assert!(world.questions(Split::HeldOut, 200).iter().all(|q| !train.contains(&q.prompt)));
        assert!(!seen.contains(&"What is the capital of France?".to_owned()));
    }

    #[test]
    fn documents_stay_short_and_the_corpus_reaches_its_size() {
        let world = World::new(WorldConfig { corpus_bytes: 300_000, ..WorldConfig::default() });
        let documents = world.corpus(Split::Train);
        assert!(documents.iter().map(|d| d.len() + 1).sum::<usize>() >= 300_000);
        assert!(documents.iter().all(|d| d.split_whitespace().count() < 160));
    }
}
