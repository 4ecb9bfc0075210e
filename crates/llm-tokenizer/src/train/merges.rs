//! Learns the merges of byte-pair encoding (Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units",
//! section 3.2): the most frequent pair of neighbouring tokens becomes a token, again and again.
//!
//! The counts of pairs are updated where a merge changes them, and a heap finds the most frequent pair, so the work is proportional
//! to the number of merged occurrences.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use ahash::AHashMap;
use serde::{Deserialize, Serialize};

/// Which of several pairs with the same number of occurrences is merged first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ties {
    /// The pair with the lowest ids: the first token decides, then the second. Bytes have ids in the order of the characters
    /// that the vocabulary spells them with, merges in the order in which they were learned. As the `tokenizers` library.
    #[default]
    Ids,
    /// The pair with the greatest bytes: the first token decides, then the second. As the reference implementation of Stanford's
    /// course CS336.
    Bytes,
}

/// A token of a vocabulary that is being learned.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Token {
    /// Whether it continues a word (`##` of `WordPiece`).
    pub(super) continues: bool,
    pub(super) bytes: Arc<[u8]>,
    /// Number of symbols that it consists of.
    symbols: u32,
}

impl Token {
    /// A token that no merge makes: a symbol, or a special token.
    pub(super) fn symbol(bytes: &[u8], continues: bool) -> Self {
        Self { continues, bytes: bytes.into(), symbols: 1 }
    }

    fn joined(&self, next: &Self) -> Self {
        let bytes = [&self.bytes[..], &next.bytes].concat();
        Self { continues: self.continues, bytes: bytes.into(), symbols: self.symbols + next.symbols }
    }
}

/// Two neighbouring tokens.
pub(super) type Pair = (u32, u32);

/// When to stop, and what not to merge.
pub(super) struct Limits {
    pub(super) vocab_size: usize,
    pub(super) min_frequency: u64,
    /// Length of a token in bytes.
    pub(super) max_token_length: usize,
    pub(super) ties: Ties,
}

/// A position without the border of a token.
const INSIDE: u32 = u32::MAX;
/// The position between two words.
const BORDER: u32 = u32::MAX - 1;

/// The distinct words of a corpus as symbols, one after the other, with a border before and after each.
///
/// A token has its id at its first and at its last symbol, so the neighbours of a token are found without links.
#[derive(Debug)]
pub(super) struct Words {
    ids: Vec<u32>,
    /// Where each word begins.
    starts: Vec<u32>,
    counts: Vec<i64>,
}

impl Words {
    pub(super) fn with_capacity(words: usize, symbols: usize) -> Self {
        let mut ids = Vec::with_capacity(symbols + words + 1);
        ids.push(BORDER);
        Self { ids, starts: Vec::with_capacity(words), counts: Vec::with_capacity(words) }
    }

    /// Adds a word that occurs `count` times.
    pub(super) fn push(&mut self, symbols: impl Iterator<Item = u32>, count: i64) {
        self.starts.push(self.ids.len() as u32);
        self.counts.push(count);
        self.ids.extend(symbols);
        self.ids.push(BORDER);
    }

    /// The index of the word with this position; `hint` is the index of a word near it.
    fn word_at(&self, hint: usize, at: u32) -> usize {
        let starts = &self.starts;
        if starts[hint] > at {
            return starts[..hint].partition_point(|start| *start <= at) - 1;
        }
        let (mut low, mut step) = (hint, 1);
        while starts.get(low + step).is_some_and(|start| *start <= at) {
            low += step;
            step *= 2;
        }
        let high = (low + step).min(starts.len());
        low + starts[low..high].partition_point(|start| *start <= at) - 1
    }
}

/// The occurrences of a pair.
#[derive(Debug, Default)]
struct Occurrences {
    count: i64,
    at: Positions,
}

/// Positions of the first token of a pair; some may be out of date. Most pairs are rare, and have no list of their own.
#[derive(Debug, Default)]
enum Positions {
    #[default]
    None,
    One(u32),
    #[allow(clippy::box_collection)] // smaller in the table of pairs
    Many(Box<Vec<u32>>),
}

impl Positions {
    fn push(&mut self, at: u32) {
        match self {
            Self::None => *self = Self::One(at),
            Self::One(first) => *self = Self::Many(Box::new(vec![*first, at])),
            Self::Many(all) => all.push(at),
        }
    }

    /// The positions in ascending order.
    fn into_sorted(self) -> Vec<u32> {
        let mut all = match self {
            Self::None => Vec::new(),
            Self::One(at) => vec![at],
            Self::Many(all) => *all,
        };
        if !all.is_sorted() {
            all.sort_unstable();
        }
        all
    }
}

/// A pair in the heap. The greatest is merged first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    count: i64,
    /// The bytes of its tokens, if they decide.
    bytes: Option<Box<[Arc<[u8]>; 2]>>,
    pair: Reverse<Pair>,
}

/// Learns merges, extends `tokens` by their results, and returns the pairs in the order in which the encoder applies them.
///
/// Two merges can give the same token (`a` + `bc`, `ab` + `c`); it has one id. A pair that is merged again, because its first or
/// second token was made in another way later, has the place of its last merge. Both are as in the `tokenizers` library.
pub(super) fn learn(tokens: &mut Vec<Token>, words: Words, limits: &Limits) -> Vec<Pair> {
    let known = tokens.iter().zip(0..).map(|(token, id)| ((token.continues, token.bytes.clone()), id)).collect();
    let mut learner = Learner { tokens, known, words, pairs: AHashMap::new(), heap: BinaryHeap::new(), limits };
    learner.count_pairs();
    let mut merges: Vec<Pair> = Vec::new();
    while learner.tokens.len() < limits.vocab_size {
        let Some(pair) = learner.most_frequent() else { break };
        merges.push(pair);
        learner.merge(pair);
    }
    let mut later = ahash::AHashSet::new();
    let mut kept: Vec<Pair> = merges.into_iter().rev().filter(|pair| later.insert(*pair)).collect();
    kept.reverse();
    kept
}

struct Learner<'a> {
    tokens: &'a mut Vec<Token>,
    known: AHashMap<(bool, Arc<[u8]>), u32>,
    words: Words,
    pairs: AHashMap<Pair, Occurrences>,
    heap: BinaryHeap<Candidate>,
    limits: &'a Limits,
}

impl Learner<'_> {
    fn token(&self, id: u32) -> &Token {
        &self.tokens[id as usize]
    }

    fn symbols(&self, id: u32) -> u32 {
        self.token(id).symbols
    }

    /// Whether the pair gives a token that is not too long.
    fn allowed(&self, (first, second): Pair) -> bool {
        self.token(first).bytes.len() + self.token(second).bytes.len() <= self.limits.max_token_length
    }

    /// Counts the pairs of all words.
    fn count_pairs(&mut self) {
        for (word, count) in self.words.counts.iter().enumerate() {
            let mut at = self.words.starts[word];
            while let [first, second, ..] = self.words.ids[at as usize..] {
                if first == BORDER || second == BORDER {
                    break;
                }
                if self.allowed((first, second)) {
                    let pair = self.pairs.entry((first, second)).or_default();
                    pair.count = pair.count.saturating_add(*count);
                    pair.at.push(at);
                }
                at += 1;
            }
        }
        let pairs: Vec<Pair> = self.pairs.keys().copied().collect();
        pairs.into_iter().for_each(|pair| self.offer(pair));
    }

    /// Puts a pair into the heap with its present count, if it is often enough.
    fn offer(&mut self, pair: Pair) {
        let count = self.pairs.get(&pair).map_or(0, |pair| pair.count);
        if count < self.least() {
            return;
        }
        let bytes = match self.limits.ties {
            Ties::Ids => None,
            Ties::Bytes => Some(Box::new([pair.0, pair.1].map(|id| self.token(id).bytes.clone()))),
        };
        self.heap.push(Candidate { count, bytes, pair: Reverse(pair) });
    }

    /// The lowest count of a pair to merge.
    fn least(&self) -> i64 {
        i64::try_from(self.limits.min_frequency.max(1)).unwrap_or(i64::MAX)
    }

    /// The next pair to merge; `None` if no pair occurs often enough.
    fn most_frequent(&mut self) -> Option<Pair> {
        while let Some(Candidate { count, pair: Reverse(pair), .. }) = self.heap.pop() {
            let Some(now) = self.pairs.get(&pair).filter(|pair| !matches!(pair.at, Positions::None)) else { continue };
            if now.count == count {
                return Some(pair);
            }
            self.offer(pair);
        }
        None
    }

    /// Replaces the occurrences of a pair by its token and updates the counts of the pairs around them.
    fn merge(&mut self, pair: Pair) {
        let (first, second) = pair;
        let joined = self.token(first).joined(self.token(second));
        let next_id = self.tokens.len() as u32;
        let id = *self.known.entry((joined.continues, joined.bytes.clone())).or_insert(next_id);
        match self.tokens.get_mut(id as usize) {
            // A special token whose text is also learned consists of more than one symbol.
            Some(token) => token.symbols = joined.symbols,
            None => self.tokens.push(joined),
        }
        let at = self.pairs.get_mut(&pair).map(|pair| std::mem::take(&mut pair.at)).unwrap_or_default();
        let (first_symbols, second_symbols) = (self.symbols(first), self.symbols(second));
        let (mut word, mut grown) = (0, Vec::new());
        for at in at.into_sorted() {
            let middle = at + first_symbols;
            if self.words.ids[at as usize] != first || self.words.ids[middle as usize] != second {
                continue;
            }
            word = self.words.word_at(word, at);
            let count = self.words.counts[word];
            let end = middle + second_symbols;
            for inside in [middle - 1, middle] {
                self.words.ids[inside as usize] = INSIDE;
            }
            for border in [at, end - 1] {
                self.words.ids[border as usize] = id;
            }
            let left = self.words.ids[at as usize - 1];
            if left != BORDER {
                let begin = at - self.symbols(left);
                self.change((left, first), -count, None, &mut grown);
                self.change((left, id), count, Some(begin), &mut grown);
            }
            let right = self.words.ids[end as usize];
            if right != BORDER {
                self.change((second, right), -count, None, &mut grown);
                self.change((id, right), count, Some(at), &mut grown);
            }
        }
        grown.sort_unstable();
        grown.dedup();
        grown.into_iter().for_each(|pair| self.offer(pair));
    }

    /// Changes the count of a pair, with the position of a new occurrence.
    fn change(&mut self, pair: Pair, count: i64, at: Option<u32>, grown: &mut Vec<Pair>) {
        let Some(at) = at else {
            if let Entry::Occupied(mut pair) = self.pairs.entry(pair) {
                pair.get_mut().count += count;
                if pair.get().count == 0 {
                    pair.remove();
                }
            }
            return;
        };
        if self.allowed(pair) {
            let occurrences = self.pairs.entry(pair).or_default();
            occurrences.count = occurrences.count.saturating_add(count);
            occurrences.at.push(at);
            grown.push(pair);
        }
    }
}
