//! The built-in world: a synthetic English dataset with a small vocabulary, generated from a seed, for all training stages of this
//! project. A small model learns it in minutes.
//!
//! It contains sentences that need self-attention ([`Phenomenon`]), facts, translations, arithmetic, summaries,
//! questions in six kinds of prompts ([`Task`]), dialogues, and advice questions with answers of different quality
//! ([`Question`]). Every correct answer is known.
//!
//! Training and held-out data are split **by the unit that is tested for generalisation** ([`SplitKey`]): a sentence frame, a
//! fact, a noun, a theme. The pre-training text ([`World::corpus`]) contains all facts and themes; conversations, rankings,
//! prompts and distillation data contain those of [`Split::Train`] only.
//!
//! ```
//! use llm_synthetic::{Phenomenon, Split, World, WorldConfig};
//!
//! let world = World::new(WorldConfig { corpus_bytes: 10_000, ..WorldConfig::default() });
//! let documents = world.corpus(Split::Train);
//! assert!(documents.iter().map(String::len).sum::<usize>() > 9_000);
//! let probes = world.probes(Phenomenon::Agreement, 2); // "The key …", "The keys …"
//! assert_eq!(probes[0].good, probes[1].bad);
//! assert_eq!(probes[0].without_deciding(), probes[1].without_deciding());
//! ```
//!
//! This crate generates data and does not depend on the model crates. Where to look next: `llm_train::recipes::lifecycle` trains
//! and tests models on it.
//!
//! `examples/world.rs` is an example to copy: samples of the dataset.

mod advice;
mod dialogue;
mod facts;
mod lexicon;
mod phenomena;
mod questions;
mod split;
mod story;
mod tasks;
mod themes;
mod topic;
mod walks;

pub use advice::{Answer, Question, Use, Utility};
pub use phenomena::{Phenomenon, Probe};
pub use split::{Split, SplitKey};
pub use tasks::{PromptKind, Task};
pub use topic::Topic;
pub use walks::{WalkConfig, WalkGraph};

use std::ops::Range;

use llm_data::Conversation;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// The settings of a [`World`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorldConfig {
    /// The same seed gives the same bytes.
    pub seed: u64,
    /// Size of the training corpus in bytes; the held-out corpus has 1/20 of it.
    pub corpus_bytes: usize,
}

/// A part of the corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// Sentences of the five phenomena, and the results of good and bad advice.
    General,
    /// Facts, translations, arithmetic, summaries and stories: what [`World::tasks`] asks for.
    Facts,
}

impl Default for WorldConfig {
    fn default() -> Self {
        Self { seed: 42, corpus_bytes: 6_000_000 }
    }
}

/// The generator of the synthetic dataset.
#[derive(Debug, Clone)]
pub struct World {
    config: WorldConfig,
}

impl World {
    /// A generator with these settings.
    pub fn new(config: WorldConfig) -> Self {
        Self { config }
    }

    /// Documents for pre-training: 2/5 of them have sentences of the five phenomena (harder ones more often), 1/5 the results of
    /// good and bad advice, 2/5 facts and stories. The split is by sentence frame, or by sentence.
    pub fn corpus(&self, split: Split) -> Vec<String> {
        let bytes = if split == Split::Train { self.config.corpus_bytes } else { self.config.corpus_bytes / 20 };
        self.write(self.rng(1, split), split, bytes, 0..20)
    }

    /// Documents of one part of [`Self::corpus`], for experiments on what a model learns or forgets: about `bytes` bytes. The two parts
    /// share no sentence.
    pub fn domain(&self, domain: Domain, split: Split, bytes: usize) -> Vec<String> {
        let (stream, kinds) = match domain {
            Domain::General => (2, 0..12),
            Domain::Facts => (3, 12..20),
        };
        self.write(self.rng(stream, split), split, bytes, kinds)
    }

    /// Documents of at least `bytes` bytes; the kind of each is a number of `kinds`.
    fn write(&self, mut rng: ChaCha8Rng, split: Split, bytes: usize, kinds: Range<u32>) -> Vec<String> {
        let (mut documents, mut size) = (Vec::new(), 0);
        while size < bytes {
            let kind = rng.random_range(kinds.clone());
            let phenomenon = pick(&mut rng, &Phenomenon::FREQUENT);
            let fact = facts::kind(&mut rng);
            let sentences = 1 + rng.random_range(0..4);
            let document: Vec<String> = (0..sentences)
                .map(|_| match kind {
                    0..8 => self.frame(&mut rng, phenomenon, split),
                    8..12 => self.sentence(&mut rng, split, advice::habit),
                    _ => self.sentence(&mut rng, split, fact),
                })
                .collect();
            let document = document.join(" ");
            size += document.len() + 1;
            documents.push(document);
        }
        documents
    }

    /// Minimal pairs of one phenomenon in held-out frames, at least `count`. Each frame has all of its cells.
    pub fn probes(&self, phenomenon: Phenomenon, count: usize) -> Vec<Probe> {
        let mut rng = self.rng(20 + phenomenon as u64, Split::HeldOut);
        let mut probes = Vec::with_capacity(count + 3);
        while probes.len() < count {
            let cells = phenomenon.cells(&mut rng, true);
            if self.split_of(&cells[0].key) == Split::HeldOut {
                probes.extend(cells);
            }
        }
        probes
    }

    /// Questions with a known answer, the same number for each kind of prompt. Those of [`Split::HeldOut`] ask for facts that occur
    /// in no conversation of [`Split::Train`]; long n-grams may still occur in both (see [`llm_data::NGrams`]).
    pub fn tasks(&self, split: Split, count: usize) -> Vec<Task> {
        let mut rng = self.rng(30, split);
        let kinds = PromptKind::ALL;
        (0..count).map(|i| tasks::draw(&mut rng, self.config.seed, split, kinds[i % kinds.len()])).collect()
    }

    /// Dialogues of several turns, for fine-tuning.
    pub fn dialogues(&self, count: usize) -> Vec<Conversation> {
        let mut rng = self.rng(60, Split::Train);
        (0..count).map(|_| dialogue::conversation(&mut rng, self.config.seed)).collect()
    }

    /// Requests to repeat words, for fine-tuning.
    pub fn echoes(&self, count: usize) -> Vec<Conversation> {
        let mut rng = self.rng(61, Split::Train);
        (0..count).map(|_| dialogue::echo(&mut rng)).collect()
    }

    /// Advice questions, each with four answers of known utility. For [`Split::Train`], different purposes have different questions;
    /// for [`Split::HeldOut`], `purpose` selects the random stream only.
    pub fn questions(&self, split: Split, purpose: Use, count: usize) -> Vec<Question> {
        let mut rng = self.rng(40 + purpose as u64, split);
        (0..count).map(|_| advice::draw(&mut rng, self.config.seed, split, purpose)).collect()
    }

    /// An advice question without answers, for a look at a model before and after alignment: how to explain quantum mechanics. Its theme
    /// is held out or not, depending on the seed.
    pub fn example(&self) -> Question {
        advice::example()
    }

    /// Whether the text contains the goal or a method (right or wrong) of a held-out theme. A model that was trained on the corpus can
    /// generate one; such a reply must not become training data.
    pub fn names_held_out_theme(&self, text: &str) -> bool {
        advice::names_held_out_theme(text, self.config.seed)
    }

    /// Advice questions with answers of random quality, for fine-tuning. A model trained on them gives good and bad answers;
    /// the reward model and PPO then teach it which answers people prefer.
    pub fn crowd(&self, count: usize) -> Vec<Conversation> {
        let mut rng = self.rng(50, Split::Train);
        let questions = self.questions(Split::Train, Use::Conversations, count);
        questions.into_iter().map(|question| question.any_answer(&mut rng)).collect()
    }

    /// A sentence of the phenomenon, in a frame of the split. In half of the sentences the deciding word is far away.
    fn frame(&self, rng: &mut ChaCha8Rng, phenomenon: Phenomenon, split: Split) -> String {
        loop {
            let far = rng.random();
            let cells = phenomenon.cells(rng, far);
            if self.split_of(&cells[0].key) == split {
                return cells[rng.random_range(0..cells.len())].sentence();
            }
        }
    }

    /// A sentence of the split; 1/10 of all sentences are held out.
    fn sentence(&self, rng: &mut ChaCha8Rng, split: Split, draw: impl Fn(&mut ChaCha8Rng) -> String) -> String {
        loop {
            let text = draw(rng);
            if self.split_of(&SplitKey::new("sentence", &text)) == split {
                return text;
            }
        }
    }

    fn split_of(&self, sentence: &SplitKey) -> Split {
        sentence.split(self.config.seed, 10)
    }

    fn rng(&self, stream: u64, split: Split) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.config.seed);
        rng.set_stream(2 * stream + u64::from(split == Split::HeldOut));
        rng
    }
}

fn pick<T: Copy>(rng: &mut ChaCha8Rng, list: &[T]) -> T {
    list[rng.random_range(0..list.len())]
}

/// Two different entries of a list.
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
#[path = "lib_tests.rs"]
mod tests;
