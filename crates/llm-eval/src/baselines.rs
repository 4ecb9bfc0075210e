//! Simple baselines: predictors without the ability that a test measures. A model must score above them.
//!
//! - [`NgramModel`]: counts of 1 to 5 words of the training text, for minimal pairs;
//! - [`NearestNeighbour`]: the answer of the most similar training prompt (TF-IDF);
//! - [`Majority`]: the most frequent training answer for a key, such as the kind of the prompt or its last word ([`last_word`]).
//!
//! ```
//! use llm_eval::baselines::NgramModel;
//!
//! let model = NgramModel::count(["The cats are here.", "The tree is here.", "The tree is tall."]);
//! assert_eq!(model.choose(2, "The cats", " are", " is").0, 1.);
//! // A bigram follows the noun next to the verb, which is not the subject here.
//! assert_eq!(model.choose(2, "The cats near the tree", " are", " is").0, 0.);
//! ```

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

/// The longest n-gram, in words.
pub const MAX_ORDER: usize = 5;

/// The factor per word of stupid back-off (Brants et al. 2007, "Large Language Models in Machine Translation").
const BACK_OFF: f64 = 0.4;

/// Counts of all sequences of 1 to 5 tokens in documents. Tokens are words and punctuation marks.
#[derive(Debug, Default)]
pub struct NgramModel {
    /// Counts by hash of the words, last word first.
    counts: HashMap<u64, u32, BuildHasherDefault<Hashed>>,
    /// Number of tokens.
    total: u64,
    /// Number of distinct tokens.
    vocabulary: u64,
}

impl NgramModel {
    /// Counts the n-grams of all orders within each document.
    pub fn count<D: AsRef<str>>(documents: impl IntoIterator<Item = D>) -> Self {
        let mut model = Self::default();
        for document in documents {
            let words = word_hashes(document.as_ref());
            for end in 0..words.len() {
                let mut key = EMPTY;
                for order in 1..=MAX_ORDER.min(end + 1) {
                    key = extended(key, words[end + 1 - order]);
                    let count = model.counts.entry(key).or_insert(0);
                    model.vocabulary += u64::from(order == 1 && *count == 0);
                    *count += 1;
                }
            }
            model.total += words.len() as u64;
        }
        model
    }

    /// The continuation of `prefix` that n-grams of up to `order` words (1 to [`MAX_ORDER`]) prefer, by two rules: 1 for `good`, 0
    /// for `bad`, 0.5 for a tie.
    ///
    /// The first rule compares the counts of the first differing word after its context, in the longest context with different
    /// counts. The second rule compares the stupid back-off scores of the whole continuations: the relative frequency of each word
    /// in the longest context with a count, times 0.4 for each word by which the context was shortened.
    pub fn choose(&self, order: usize, prefix: &str, good: &str, bad: &str) -> (f64, f64) {
        let order = order.clamp(1, MAX_ORDER);
        let prefix = word_hashes(prefix);
        let with = |rest: &str| [prefix.as_slice(), &word_hashes(rest)].concat();
        let (good, bad) = (with(good), with(bad));
        let by_score = compare(self.log_score(order, &good, prefix.len()), self.log_score(order, &bad, prefix.len()));
        let Some(at) = (0..good.len().min(bad.len())).find(|&i| good[i] != bad[i]) else { return (0.5, by_score) };
        let count = |words: &[u64], order: usize| f64::from(self.count_of(&words[at + 1 - order..=at]));
        let longest_first = (1..=order.min(at + 1)).rev();
        let mut by_count = longest_first.map(|order| compare(count(&good, order), count(&bad, order)));
        (by_count.find(|&choice| choice != 0.5).unwrap_or(0.5), by_score)
    }

    /// [`Self::choose`] for all (prefix, good, bad), by the rule that is right more often.
    pub fn choices<'a>(&self, order: usize, pairs: impl IntoIterator<Item = (&'a str, &'a str, &'a str)>) -> Vec<f64> {
        let choices = pairs.into_iter().map(|(prefix, good, bad)| self.choose(order, prefix, good, bad));
        let (by_count, by_score): (Vec<f64>, Vec<f64>) = choices.unzip();
        if by_count.iter().sum::<f64>() >= by_score.iter().sum::<f64>() { by_count } else { by_score }
    }

    /// The sum of the log scores (stupid back-off) of the words from index `first` on.
    fn log_score(&self, order: usize, words: &[u64], first: usize) -> f64 {
        let score = |at: usize| {
            let mut factor = 1.;
            for order in (2..=order.min(at + 1)).rev() {
                let count = self.count_of(&words[at + 1 - order..=at]);
                if count > 0 {
                    return factor * f64::from(count) / f64::from(self.count_of(&words[at + 1 - order..at]));
                }
                factor *= BACK_OFF;
            }
            // Add-one smoothing: a word without a count has a score too.
            let smoothed = f64::from(self.count_of(&words[at..=at])) + 1.;
            factor * smoothed / (self.total + self.vocabulary + 1) as f64
        };
        (first..words.len()).map(|at| score(at).ln()).sum()
    }

    fn count_of(&self, words: &[u64]) -> u32 {
        let key = words.iter().rev().fold(EMPTY, |key, &word| extended(key, word));
        self.counts.get(&key).copied().unwrap_or(0)
    }
}

/// 1 if `good` is greater, 0 if `bad` is greater, 0.5 for a tie.
fn compare(good: f64, bad: f64) -> f64 {
    if good == bad { 0.5 } else { f64::from(u8::from(good > bad)) }
}

/// A hasher for keys that are already hashes.
#[derive(Debug, Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, &byte| extended(hash, u64::from(byte)));
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

/// The hash of the empty sequence.
const EMPTY: u64 = 0xcbf2_9ce4_8422_2325;

/// The hash of a sequence extended by one word (the finalizer of `SplitMix64`).
fn extended(key: u64, word: u64) -> u64 {
    let mut mixed = key.rotate_left(23) ^ word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The words and punctuation marks of a text, in order.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        let first = rest.chars().next()?;
        let end = if first.is_alphanumeric() {
            rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        let (word, after) = rest.split_at(end);
        rest = after;
        Some(word)
    })
}

/// The 64-bit FNV-1a hash of each word.
fn word_hashes(text: &str) -> Vec<u64> {
    let hash =
        |word: &str| word.bytes().fold(EMPTY, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    words(text).map(hash).collect()
}

/// Answers with the answer of the most similar training prompt.
///
/// The similarity is the cosine of TF-IDF vectors of lower-case words, as in scikit-learn's `TfidfVectorizer`: the number of
/// occurrences times `ln((1 + n) / (1 + documents with the word)) + 1`.
#[derive(Debug)]
pub struct NearestNeighbour {
    answers: Vec<String>,
    /// For each word: its inverse document frequency, and (prompt, normalised weight) of each prompt with the word.
    words: HashMap<String, (f64, Vec<(u32, f64)>)>,
}

impl NearestNeighbour {
    /// Builds the index from training (prompt, answer) pairs.
    pub fn new<P: AsRef<str>, A: Into<String>>(training: impl IntoIterator<Item = (P, A)>) -> Self {
        let (mut bags, mut answers) = (Vec::new(), Vec::new());
        for (prompt, answer) in training {
            bags.push(bag(prompt.as_ref()));
            answers.push(answer.into());
        }
        let mut documents: HashMap<&str, usize> = HashMap::new();
        for word in bags.iter().flat_map(BTreeMap::keys) {
            *documents.entry(word).or_insert(0) += 1;
        }
        let weight = |count: usize| ((1 + bags.len()) as f64 / (1 + count) as f64).ln() + 1.;
        let mut words: HashMap<String, (f64, Vec<(u32, f64)>)> =
            documents.iter().map(|(&word, &count)| (word.to_owned(), (weight(count), Vec::new()))).collect();
        for (prompt, bag) in bags.iter().enumerate() {
            let weighted = |(word, count): (&String, &f64)| count * words[word].0;
            let norm = bag.iter().map(weighted).map(|x| x * x).sum::<f64>().sqrt();
            for (word, count) in bag {
                if let Some((weight, prompts)) = words.get_mut(word) {
                    prompts.push((prompt as u32, count * *weight / norm));
                }
            }
        }
        Self { answers, words }
    }

    /// The answer of the most similar training prompt (the first of equally similar ones); `None` without training prompts.
    pub fn answer(&self, prompt: &str) -> Option<&str> {
        let mut similarity = vec![0.; self.answers.len()];
        for (word, count) in bag(prompt) {
            let Some((weight, prompts)) = self.words.get(&word) else { continue };
            for &(prompt, prompt_weight) in prompts {
                similarity[prompt as usize] += count * weight * prompt_weight;
            }
        }
        let best = (0..similarity.len()).rev().max_by(|&a, &b| similarity[a].total_cmp(&similarity[b]))?;
        Some(&self.answers[best])
    }
}

/// The count of each lower-case word of a text.
fn bag(text: &str) -> BTreeMap<String, f64> {
    let mut bag = BTreeMap::new();
    for word in words(text) {
        *bag.entry(word.to_lowercase()).or_insert(0.) += 1.;
    }
    bag
}

/// Answers with the most frequent training answer for a key.
#[derive(Debug)]
pub struct Majority {
    by_key: HashMap<String, String>,
    overall: Option<String>,
}

impl Majority {
    /// Counts training (key, answer) pairs.
    pub fn new<K: Into<String>, A: Into<String>>(training: impl IntoIterator<Item = (K, A)>) -> Self {
        let mut all: BTreeMap<String, usize> = BTreeMap::new();
        let mut counts: HashMap<String, BTreeMap<String, usize>> = HashMap::new();
        for (key, answer) in training {
            let answer = answer.into();
            *all.entry(answer.clone()).or_insert(0) += 1;
            *counts.entry(key.into()).or_default().entry(answer).or_insert(0) += 1;
        }
        let most_frequent = |answers: BTreeMap<String, usize>| {
            answers.into_iter().rev().max_by_key(|&(_, count)| count).map(|(answer, _)| answer)
        };
        let by_key = counts.into_iter().filter_map(|(key, answers)| Some((key, most_frequent(answers)?))).collect();
        Self { by_key, overall: most_frequent(all) }
    }

    /// The most frequent answer for the key, or over all keys if the key is unknown; ties go to the alphabetically first answer.
    /// `None` without training answers.
    pub fn answer(&self, key: &str) -> Option<&str> {
        self.by_key.get(key).or(self.overall.as_ref()).map(String::as_str)
    }
}

/// The last word of a prompt without punctuation: the query of a few-shot prompt.
///
/// ```
/// assert_eq!(llm_eval::baselines::last_word("dog -> chien\ncat ->"), "cat");
/// ```
pub fn last_word(prompt: &str) -> &str {
    let is_word = |word: &&str| word.chars().all(char::is_alphanumeric);
    words(prompt).filter(is_word).last().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_split_into_words_and_punctuation() {
        let all: Vec<&str> = words("  The cat's 12 -> \"Où?\"\n").collect();
        assert_eq!(all, ["The", "cat", "'", "s", "12", "-", ">", "\"", "Où", "?", "\""]);
        assert_eq!(words("").count(), 0);
    }

    #[test]
    fn n_grams_are_counted_within_documents() {
        let model = NgramModel::count(["a b a b c", "b a"]);
        let count = |text: &str| model.count_of(&word_hashes(text));
        let expected = [("a", 3), ("b", 3), ("c", 1), ("a b", 2), ("b a", 2), ("b c", 1), ("a b a b c", 1), ("c b", 0)];
        assert_eq!(expected.map(|(text, _)| (text, count(text))), expected);
        assert_eq!((model.total, model.vocabulary), (7, 3));
    }

    /// "b" follows "a" in 2 of 3 cases; "c" never follows "a", so its score is 0.4 · (1 + 1) / (7 + 3 + 1).
    #[test]
    fn scores_match_stupid_back_off() {
        let model = NgramModel::count(["a b a b c", "b a"]);
        let score = |order, text: &str| model.log_score(order, &word_hashes(text), 1).exp();
        assert!((score(2, "a b") - 2. / 3.).abs() < 1e-12);
        assert!((score(2, "a c") - 0.4 * 2. / 11.).abs() < 1e-12);
        assert!((score(1, "a b") - 4. / 11.).abs() < 1e-12);
        assert!((score(3, "a b c") - 2. / 3. * 0.5).abs() < 1e-12);
    }

    #[test]
    fn the_longest_context_with_different_counts_decides() {
        let texts = ["not happy so sad.", "not happy so sad.", "happy so glad.", "so glad.", "so glad.", "so glad."];
        let model = NgramModel::count(texts);
        assert_eq!(model.choose(4, "He was not happy, he was not happy so", " sad.", " glad.").0, 1.);
        assert_eq!(model.choose(3, "not happy so", " sad.", " glad."), (1., 1.));
        assert_eq!(model.choose(2, "not happy so", " sad.", " glad."), (0., 0.), "glad is more frequent after so");
        assert_eq!(model.choose(5, "tired so", " sad.", " glad."), (0., 0.), "an unseen context is shortened");
        assert_eq!(model.choose(5, "tired so", " blue.", " green."), (0.5, 0.5));
        assert_eq!(model.choose(5, "so", " glad.", " glad."), (0.5, 0.5));
    }

    #[test]
    fn choices_use_the_rule_that_is_right_more_often() {
        // The counts of the first differing word are equal; the scores of the continuations are not.
        let model = NgramModel::count(["x a p", "x b q", "q", "q"]);
        assert_eq!(model.choose(2, "x", " a p", " b p"), (0.5, 1.));
        assert_eq!(model.choices(2, [("x", " a p", " b p"), ("x", " b q", " a q")]), [1., 1.]);
        assert_eq!(model.choices(1, []), Vec::<f64>::new());
    }

    /// Only the word three positions back decides: orders 1 to 3 are at chance, 4 and 5 are right.
    #[test]
    fn an_order_uses_exactly_that_many_words() {
        let texts: Vec<String> = (0..40).map(|i| format!("{} x y {}", ["a", "b"][i % 2], ["p", "q"][i % 2])).collect();
        let model = NgramModel::count(&texts);
        for order in 1..=MAX_ORDER {
            let right = |first: &str, good, bad| model.choose(order, &format!("{first} x y"), good, bad).0;
            let mean = f64::midpoint(right("a", " p", " q"), right("b", " q", " p"));
            assert_eq!(mean, if order >= 4 { 1. } else { 0.5 }, "order {order}");
        }
    }

    #[test]
    fn a_corpus_of_megabytes_is_counted_in_seconds() {
        let text = |i: usize| format!("The {} of {} saw {} near the {}.", i % 97, i % 89, i % 83, i % 79);
        let documents: Vec<String> = (0..60_000).map(text).collect();
        let start = std::time::Instant::now();
        let model = NgramModel::count(&documents);
        assert!(model.total > 500_000);
        assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    }

    /// TF-IDF weights as in scikit-learn: "cat" and "dog" occur in one of two prompts, "the" in both.
    #[test]
    fn the_most_similar_prompt_answers() {
        let nearest = NearestNeighbour::new([("the cat", "meow"), ("the the the dog", "woof")]);
        let rare = (3f64 / 2.).ln() + 1.;
        let (weight, prompts) = &nearest.words["cat"];
        assert!((weight - rare).abs() < 1e-12);
        assert_eq!(prompts[0].0, 0);
        assert!((prompts[0].1 - rare / (rare * rare + 1.).sqrt()).abs() < 1e-12);
        assert!((nearest.words["the"].1[1].1 - 3. / (rare * rare + 9.).sqrt()).abs() < 1e-12);
        assert_eq!(nearest.answer("The cat?"), Some("meow"));
        assert_eq!(nearest.answer("a DOG"), Some("woof"));
        assert_eq!(nearest.answer("the"), Some("woof"), "this prompt has the word more often");
        assert_eq!(nearest.answer("unknown"), Some("meow"), "the first among equals");
        assert_eq!(NearestNeighbour::new(Vec::<(&str, &str)>::new()).answer("the"), None);
    }

    #[test]
    fn the_majority_answer_depends_on_the_key() {
        let majority = Majority::new([("a", "x"), ("a", "y"), ("a", "y"), ("b", "x"), ("b", "z"), ("c", "x")]);
        assert_eq!(["a", "b", "new"].map(|key| majority.answer(key)), [Some("y"), Some("x"), Some("x")]);
        assert_eq!(Majority::new(Vec::<(&str, &str)>::new()).answer("a"), None);
        assert_eq!(["dog = chien\ncat =", "", "Animal or tool? Hammer."].map(last_word), ["cat", "", "Hammer"]);
    }
}
