//! Splits into training and validation data by prompt, and duplicates within and across splits.

use std::collections::HashSet;

use crate::{Error, Result};

/// The split key of an item: items with the same key must be in the same split. Usually the key of the prompt.
///
/// A 64-bit FNV-1a hash of texts after normalisation: lower case, white space collapsed to one space, empty texts left out. It
/// does not depend on ids, positions in a file, or the run of the program.
///
/// ```
/// use llm_data::SplitKey;
///
/// assert_eq!(SplitKey::of(["Name a\n colour. "]), SplitKey::of(["name a colour."]));
/// assert_ne!(SplitKey::of(["a", "b"]), SplitKey::of(["a b"]));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SplitKey(u64);

impl SplitKey {
    /// The key of these texts, in this order.
    pub fn of<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut hash = Fnv1a::default();
        for text in texts {
            let mut words = text.split_whitespace().peekable();
            while let Some(word) = words.next() {
                word.chars().flat_map(char::to_lowercase).for_each(|c| hash.add_char(c));
                hash.add(if words.peek().is_some() { b' ' } else { TEXT_END });
            }
        }
        Self(hash.0)
    }

    /// A number in `[0, 1)`, uniform over keys, that is a function of (key, seed). An item is in the validation split if its number
    /// is below the validation share.
    pub fn draw(self, seed: u64) -> f64 {
        // The finaliser of SplitMix64 (Steele, Lea and Flood 2014), applied twice so that seed and key do not cancel out.
        let mix = |x: u64| {
            let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            x ^ (x >> 31)
        };
        let mixed = mix(mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ self.0);
        (mixed >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Separates texts; this byte never occurs in UTF-8.
const TEXT_END: u8 = 0xff;

struct Fnv1a(u64);

impl Default for Fnv1a {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv1a {
    fn add(&mut self, byte: u8) {
        self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }

    fn add_char(&mut self, c: char) {
        c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| self.add(byte));
    }
}

/// The split keys of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ItemKeys {
    /// The key of the prompt; items with the same prompt are in the same split.
    pub prompt: SplitKey,
    /// The key of the prompt and the answers; items with the same key are duplicates.
    pub whole: SplitKey,
}

impl From<SplitKey> for ItemKeys {
    /// The keys of an item without answers, such as a prompt or a document.
    fn from(key: SplitKey) -> Self {
        Self { prompt: key, whole: key }
    }
}

/// An item that has split keys.
pub trait Keyed {
    /// The keys of this item.
    fn keys(&self) -> ItemKeys;

    /// The text of each way to continue the prompt, without system messages.
    fn texts(&self) -> Vec<String>;
}

/// Numbers of duplicates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Duplicates {
    /// Items with the prompt and the answers of an earlier item.
    pub exact: usize,
    /// Items with the prompt of an earlier item, but other answers.
    pub same_prompt: usize,
}

impl Duplicates {
    /// Duplicates within a list of items.
    pub fn within(items: impl IntoIterator<Item = ItemKeys>) -> Self {
        let (mut prompts, mut wholes, mut found) = (HashSet::new(), HashSet::new(), Self::default());
        for keys in items {
            let (new_prompt, new_whole) = (prompts.insert(keys.prompt), wholes.insert(keys.whole));
            found.exact += usize::from(!new_whole);
            found.same_prompt += usize::from(new_whole && !new_prompt);
        }
        found
    }

    /// Items of the validation split that are duplicates of training items.
    pub fn across(train: impl IntoIterator<Item = ItemKeys>, validation: impl IntoIterator<Item = ItemKeys>) -> Self {
        let (prompts, wholes): (HashSet<_>, HashSet<_>) = train.into_iter().map(|k| (k.prompt, k.whole)).unzip();
        let mut found = Self::default();
        for keys in validation {
            let whole = wholes.contains(&keys.whole);
            found.exact += usize::from(whole);
            found.same_prompt += usize::from(!whole && prompts.contains(&keys.prompt));
        }
        found
    }

    /// All duplicates.
    pub fn total(self) -> usize {
        self.exact + self.same_prompt
    }
}

/// Splits items by prompt: returns (training, validation), each in the order of `items`. `share` is the share of the prompts
/// in the validation split; all items with the same prompt are in the same split.
///
/// The split depends on the split keys and the seed, not on the order of the items. Each split has at least one prompt. An error
/// if the share is not between 0 and 1 (exclusive), or if all items have the same prompt.
pub fn split_by_prompt<T>(
    items: Vec<T>,
    prompt: impl Fn(&T) -> SplitKey,
    share: f64,
    seed: u64,
) -> Result<(Vec<T>, Vec<T>)> {
    if !(share > 0. && share < 1.) {
        return Err(Error::ValidationShare { share });
    }
    let distinct: HashSet<SplitKey> = items.iter().map(&prompt).collect();
    if distinct.len() < 2 {
        return Err(Error::OnePrompt { items: items.len() });
    }
    let mut keys: Vec<SplitKey> = distinct.into_iter().collect();
    keys.sort_unstable_by(|a, b| a.draw(seed).total_cmp(&b.draw(seed)).then(a.cmp(b)));
    let count = ((keys.len() as f64 * share).round() as usize).clamp(1, keys.len() - 1);
    let validation: HashSet<SplitKey> = keys.into_iter().take(count).collect();
    Ok(items.into_iter().partition(|item| !validation.contains(&prompt(item))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_depends_on_the_normalised_texts_and_their_order() {
        let key = |texts: &[&str]| SplitKey::of(texts.iter().copied());
        assert_eq!(key(&["  Straße \t und\r\nWEG"]), key(&["straße und weg"]));
        assert_eq!(key(&["", "a", " \n "]), key(&["a"]));
        for (a, b) in [(["a", "b"], ["b", "a"]), (["a b", "c"], ["a", "b c"]), (["ab", ""], ["a", "b"])] {
            assert_ne!(key(&a), key(&b), "{a:?} and {b:?}");
        }
        // FNV-1a of "foobar" is 85944171f73967e8 (Fowler, Noll and Vo), followed by the separator byte.
        let ended = (0x8594_4171_f739_67e8_u64 ^ 0xff).wrapping_mul(0x0100_0000_01b3);
        assert_eq!(key(&["Foobar"]), SplitKey(ended));
    }

    #[test]
    fn draws_are_uniform_over_keys_and_differ_between_seeds() {
        let keys: Vec<SplitKey> = (0..4000).map(|i| SplitKey::of([format!("prompt {i}").as_str()])).collect();
        let below = |seed: u64| keys.iter().map(|k| k.draw(seed) < 0.25).collect::<Vec<_>>();
        let (first, second) = (below(1), below(2));
        let count = |below: &[bool]| below.iter().filter(|below| **below).count();
        // Binomial: 1000 of 4000, standard deviation 27.
        assert!((900..1100).contains(&count(&first)) && (900..1100).contains(&count(&second)));
        let both = first.iter().zip(&second).filter(|(a, b)| **a && **b).count();
        assert!((190..310).contains(&both), "{both}; 250 are expected if seeds are independent");
    }

    #[test]
    fn all_items_of_a_prompt_are_in_one_split_for_any_order_of_items() {
        let items: Vec<(String, usize)> = (0..300).map(|i| (format!("Prompt {}", i / 3), i)).collect();
        let split = |items| split_by_prompt(items, |item: &(String, _)| SplitKey::of([item.0.as_str()]), 0.2, 7);
        let (train, validation) = split(items.clone()).unwrap();
        assert_eq!((train.len(), validation.len()), (240, 60));
        assert!(train.iter().all(|a| validation.iter().all(|b| a.0 != b.0)));
        assert!(train.is_sorted_by_key(|item| item.1) && validation.is_sorted_by_key(|item| item.1));
        let mut reversed = split(items.into_iter().rev().collect()).unwrap().1;
        reversed.reverse();
        assert_eq!(reversed, validation);
    }

    #[test]
    fn a_single_prompt_or_an_invalid_share_is_an_error() {
        let split = |texts: &[&'static str], share: f64| {
            split_by_prompt(texts.to_vec(), |text| SplitKey::of([*text]), share, 1).map_err(|e| e.to_string())
        };
        assert!(split(&["a", "A ", " a"], 0.5).unwrap_err().contains("all 3 items have the same one"));
        assert!(split(&["a"], 0.5).unwrap_err().contains("all 1 items have the same one"));
        for share in [0., 1., -3., f64::NAN] {
            assert!(split(&["a", "b"], share).unwrap_err().contains("greater than 0 and less than 1"), "{share}");
        }
        let (train, validation) = split(&["a", "b"], 0.01).unwrap();
        assert_eq!((train.len(), validation.len()), (1, 1), "at least one prompt in each split");
    }

    #[test]
    fn each_duplicate_is_counted_once() {
        let keys = |prompt: &str, answer: &str| ItemKeys {
            prompt: SplitKey::of([prompt]),
            whole: SplitKey::of([prompt, answer]),
        };
        let train = [keys("p", "a"), keys("P", "A"), keys("p", "b"), keys("p", "b"), keys("q", "a")];
        assert_eq!(Duplicates::within(train), Duplicates { exact: 2, same_prompt: 1 });
        let validation = [keys("p", "c"), keys("q", " a"), keys("r", "a")];
        assert_eq!(Duplicates::across(train, validation), Duplicates { exact: 1, same_prompt: 1 });
    }
}
