//! Predictors that lack the ability that a test is named after: what they score, the test does not measure.
//!
//! - [`NgramModel`]: counts of 1 to 5 words of the training text, for minimal pairs. It knows no word that is further back.
//! - [`NearestNeighbour`]: the answer of the training prompt with the most similar words; it understands none of them.
//! - [`Majority`]: the commonest training answer to a key: the kind of the prompt, or its last word ([`last_word`]),
//!   which is a few-shot prompt without its examples.
//!
//! ```
//! use llm_train::baselines::NgramModel;
//!
//! let model = NgramModel::count(["The cats are here.", "The tree is here.", "The tree is tall."]);
//! assert_eq!(model.choose(2, "The cats", " are", " is").0, 1.);
//! // It follows the last word before the verb, which is not the subject.
//! assert_eq!(model.choose(2, "The cats near the tree", " are", " is").0, 0.);
//! ```

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

/// The longest n-gram that is counted, in words.
pub const MAX_ORDER: usize = 5;

/// The factor of a back-off by one word (Brants et al. 2007, "Large Language Models in Machine Translation").
const BACK_OFF: f64 = 0.4;

/// How often each sequence of 1 to 5 words occurs in documents. Words and punctuation marks are the tokens.
#[derive(Debug, Default)]
pub struct NgramModel {
    /// By the hash of the words, the last word first.
    counts: HashMap<u64, u32, BuildHasherDefault<Hashed>>,
    /// Tokens of all documents.
    total: u64,
    /// Different tokens.
    vocabulary: u64,
}

impl NgramModel {
    /// Counts the documents' n-grams of all orders; none crosses from one document into the next.
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

    /// Which continuation of `prefix` n-grams of up to `order` words (1 to [`MAX_ORDER`]) choose, by two rules: 1 where
    /// `good` wins, 0 where `bad` wins, 0.5 for a tie.
    ///
    /// The first rule compares how often the first word in which the continuations differ follows the words before it:
    /// in the longest context in which the counts are not equal. The second compares the scores of the whole
    /// continuations by stupid back-off, which is the relative frequency of a word in the longest context in which it
    /// was seen, times 0.4 for each word that the context was shortened by.
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

    /// The choices for all (prefix, good, bad) by n-grams of up to `order` words, by the rule of [`Self::choose`] that is
    /// right more often on them.
    pub fn choices<'a>(&self, order: usize, pairs: impl IntoIterator<Item = (&'a str, &'a str, &'a str)>) -> Vec<f64> {
        let choices = pairs.into_iter().map(|(prefix, good, bad)| self.choose(order, prefix, good, bad));
        let (by_count, by_score): (Vec<f64>, Vec<f64>) = choices.unzip();
        if by_count.iter().sum::<f64>() >= by_score.iter().sum::<f64>() { by_count } else { by_score }
    }

    /// The sum of the logarithms of the stupid back-off scores of the words from `first` on.
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
            // One occurrence is added to each word, so that an unseen one has a score too.
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

/// 1 where the first is greater, 0 where the second is, 0.5 for a tie.
fn compare(good: f64, bad: f64) -> f64 {
    if good == bad { 0.5 } else { f64::from(u8::from(good > bad)) }
}

/// A hasher for keys that are hashes already.
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

/// The hash of no words.
const EMPTY: u64 = 0xcbf2_9ce4_8422_2325;

/// The hash of a sequence with one more word (the finalizer of `SplitMix64`).
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

/// Answers with the answer of the training prompt that has the most similar words.
///
/// The similarity is the cosine of bags of lower-case words, weighted as in scikit-learn's `TfidfVectorizer`: by the
/// number of occurrences times `ln((1 + n) / (1 + documents with the word)) + 1`.
#[derive(Debug)]
pub struct NearestNeighbour {
    answers: Vec<String>,
    /// For each word its weight, and the prompts with it with their normalised weights.
    words: HashMap<String, (f64, Vec<(u32, f64)>)>,
}

impl NearestNeighbour {
    /// Learns training prompts with their answers.
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

    /// The answer of the most similar training prompt, of the first one among equals; `None` without training prompts.
    pub fn answer(&self, prompt: &str) -> Option<&str> {
        let mut similarity = vec![0.; self.answers.len()];
        for (word, count) in bag(prompt) {
            let Some((weight, prompts)) = self.words.get(&word) else { continue };
            for &(prompt, theirs) in prompts {
                similarity[prompt as usize] += count * weight * theirs;
            }
        }
        let best = (0..similarity.len()).rev().max_by(|&a, &b| similarity[a].total_cmp(&similarity[b]))?;
        Some(&self.answers[best])
    }
}

/// How often each word occurs in a text, in lower case.
fn bag(text: &str) -> BTreeMap<String, f64> {
    let mut bag = BTreeMap::new();
    for word in words(text) {
        *bag.entry(word.to_lowercase()).or_insert(0.) += 1.;
    }
    bag
}

/// Answers with the commonest training answer to a key.
#[derive(Debug)]
pub struct Majority {
    by_key: HashMap<String, String>,
    overall: Option<String>,
}

impl Majority {
    /// Learns keys with their answers.
    pub fn new<K: Into<String>, A: Into<String>>(training: impl IntoIterator<Item = (K, A)>) -> Self {
        let mut all: BTreeMap<String, usize> = BTreeMap::new();
        let mut counts: HashMap<String, BTreeMap<String, usize>> = HashMap::new();
        for (key, answer) in training {
            let answer = answer.into();
            *all.entry(answer.clone()).or_insert(0) += 1;
            *counts.entry(key.into()).or_default().entry(answer).or_insert(0) += 1;
        }
        let commonest = |answers: BTreeMap<String, usize>| {
            answers.into_iter().rev().max_by_key(|&(_, count)| count).map(|(answer, _)| answer)
        };
        let by_key = counts.into_iter().filter_map(|(key, answers)| Some((key, commonest(answers)?))).collect();
        Self { by_key, overall: commonest(all) }
    }

    /// The commonest answer to the key, or of all where the key is new; the first in the alphabet among equals. `None`
    /// without training answers.
    pub fn answer(&self, key: &str) -> Option<&str> {
        self.by_key.get(key).or(self.overall.as_ref()).map(String::as_str)
    }
}

/// The last word of a prompt, without the punctuation after it: what a few-shot prompt asks for.
///
/// ```
/// assert_eq!(llm_train::baselines::last_word("dog -> chien\ncat ->"), "cat");
/// ```
pub fn last_word(prompt: &str) -> &str {
    let is_word = |word: &&str| word.chars().all(char::is_alphanumeric);
    words(prompt).filter(is_word).last().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_into_words_and_marks() {
        let all: Vec<&str> = words("  The cat's 12 -> \"Où?\"\n").collect();
        assert_eq!(all, ["The", "cat", "'", "s", "12", "-", ">", "\"", "Où", "?", "\""]);
        assert_eq!(words("").count(), 0);
    }

    #[test]
    fn counts_are_those_of_the_documents() {
        let model = NgramModel::count(["a b a b c", "b a"]);
        let count = |text: &str| model.count_of(&word_hashes(text));
        let expected = [("a", 3), ("b", 3), ("c", 1), ("a b", 2), ("b a", 2), ("b c", 1), ("a b a b c", 1), ("c b", 0)];
        assert_eq!(expected.map(|(text, _)| (text, count(text))), expected);
        assert_eq!((model.total, model.vocabulary), (7, 3));
    }

    /// By hand: b follows a in 2 of 3; "c" is not seen after "a", so 0.4 · (1 + 1) / (7 + 3 + 1).
    #[test]
    fn a_score_backs_off_by_the_published_factor() {
        let model = NgramModel::count(["a b a b c", "b a"]);
        let score = |order, text: &str| model.log_score(order, &word_hashes(text), 1).exp();
        assert!((score(2, "a b") - 2. / 3.).abs() < 1e-12);
        assert!((score(2, "a c") - 0.4 * 2. / 11.).abs() < 1e-12);
        assert!((score(1, "a b") - 4. / 11.).abs() < 1e-12);
        assert!((score(3, "a b c") - 2. / 3. * 0.5).abs() < 1e-12);
    }

    #[test]
    fn the_longest_context_whose_counts_differ_decides() {
        let texts = ["not happy so sad.", "not happy so sad.", "happy so glad.", "so glad.", "so glad.", "so glad."];
        let model = NgramModel::count(texts);
        assert_eq!(model.choose(4, "He was not happy, he was not happy so", " sad.", " glad.").0, 1.);
        assert_eq!(model.choose(3, "not happy so", " sad.", " glad."), (1., 1.));
        assert_eq!(model.choose(2, "not happy so", " sad.", " glad."), (0., 0.), "glad is commoner after so");
        assert_eq!(model.choose(5, "tired so", " sad.", " glad."), (0., 0.), "an unseen context is shortened");
        assert_eq!(model.choose(5, "tired so", " blue.", " green."), (0.5, 0.5));
        assert_eq!(model.choose(5, "so", " glad.", " glad."), (0.5, 0.5));
    }

    #[test]
    fn the_rule_that_is_right_more_often_gives_the_scores() {
        // The first differing word is a tie for the counts; the whole continuations are not.
        let model = NgramModel::count(["x a p", "x b q", "q", "q"]);
        assert_eq!(model.choose(2, "x", " a p", " b p"), (0.5, 1.));
        assert_eq!(model.choices(2, [("x", " a p", " b p"), ("x", " b q", " a q")]), [1., 1.]);
        assert_eq!(model.choices(1, []), Vec::<f64>::new());
    }

    /// Nothing but the third word back decides: orders 1 to 3 are at chance, 4 and 5 are right.
    #[test]
    fn an_order_sees_as_many_words_as_it_says() {
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

    /// By hand, as scikit-learn weighs: "cat" and "dog" occur in one of two prompts, "the" in both.
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
        assert_eq!(nearest.answer("the"), Some("woof"), "it has more of the word");
        assert_eq!(nearest.answer("unknown"), Some("meow"), "the first among equals");
        assert_eq!(NearestNeighbour::new(Vec::<(&str, &str)>::new()).answer("the"), None);
    }

    #[test]
    fn the_commonest_answer_is_that_of_the_key() {
        let majority = Majority::new([("a", "x"), ("a", "y"), ("a", "y"), ("b", "x"), ("b", "z"), ("c", "x")]);
        assert_eq!(["a", "b", "new"].map(|key| majority.answer(key)), [Some("y"), Some("x"), Some("x")]);
        assert_eq!(Majority::new(Vec::<(&str, &str)>::new()).answer("a"), None);
        assert_eq!(["dog = chien\ncat =", "", "Animal or tool? Hammer."].map(last_word), ["cat", "", "Hammer"]);
    }
}
