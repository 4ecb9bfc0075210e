//! The train and held-out splits of the synthetic dataset.
//!
//! Each unit that is tested for generalisation (a fact, a word, a theme, a sum, a sentence frame) has one [`SplitKey`]. The
//! split is a function of the seed of the dataset and that key, so it does not depend on wording, role, greeting or examples.

use serde::{Deserialize, Serialize};

/// The split of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// The training split.
    Train,
    /// The held-out split: its keys do not occur in the training data of the stage that is tested.
    HeldOut,
}

/// The name of a unit that must be in one split only, such as `capital:France` or `theme:put out a candle`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SplitKey(String);

/// Items in the examples of the documentation; they are held out for every seed.
const ALWAYS_HELD_OUT: [&str; 2] = ["capital:France", "story:3-1+5"];

impl SplitKey {
    /// The key `kind:name`.
    pub fn new(kind: &str, name: impl std::fmt::Display) -> Self {
        Self(format!("{kind}:{name}"))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The split of this key for this seed; on average one of `one_in` keys is held out.
    pub fn split(&self, seed: u64, one_in: u64) -> Split {
        let forced = ALWAYS_HELD_OUT.contains(&self.0.as_str());
        if forced || self.hash(seed).is_multiple_of(one_in) { Split::HeldOut } else { Split::Train }
    }

    /// The split of this key among the known keys `all`, which include it. Exactly one of `one_in` keys is held out (the number is
    /// rounded down).
    pub fn split_among(&self, all: impl IntoIterator<Item = Self>, seed: u64, one_in: usize) -> Split {
        let rank = |key: &Self| (!ALWAYS_HELD_OUT.contains(&key.0.as_str()), key.hash(seed));
        let own = rank(self);
        let (mut before, mut count) = (0, 0);
        for key in all {
            before += usize::from(rank(&key) < own);
            count += 1;
        }
        if before < count / one_in { Split::HeldOut } else { Split::Train }
    }

    /// The part of this key when all keys are divided into `parts` parts of about equal size: `0..parts`.
    pub fn part(&self, seed: u64, parts: u64) -> u64 {
        self.hash(seed.wrapping_add(0x9e37_79b9)) % parts
    }

    /// FNV-1a of the seed and the bytes of the key, with the upper bits mixed into the lower bits.
    fn hash(&self, seed: u64) -> u64 {
        let bytes = seed.to_le_bytes().into_iter().chain(self.0.bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        (hash ^ hash >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_held_out_keys_is_as_requested() {
        let keys: Vec<SplitKey> = (0..4000).map(|i| SplitKey::new("word", i)).collect();
        let held_out = |seed| keys.iter().filter(|k| k.split(seed, 4) == Split::HeldOut).count();
        assert!((900..1100).contains(&held_out(1)) && (900..1100).contains(&held_out(2)));
        assert!(keys.iter().any(|k| k.split(1, 4) != k.split(2, 4)), "the split depends on the seed");
        assert!((0..20).all(|seed| SplitKey::new("capital", "France").split(seed, 1000) == Split::HeldOut));
        let capitals = ["France", "Spain", "Italy", "Peru"].map(|name| SplitKey::new("capital", name));
        for seed in 0..20 {
            let split = |key: &SplitKey| key.split_among(capitals.clone(), seed, 4);
            assert_eq!(capitals.iter().map(split).filter(|s| *s == Split::HeldOut).count(), 1);
            assert_eq!(split(&capitals[0]), Split::HeldOut);
        }
        let parts: Vec<usize> = (0..4).map(|part| keys.iter().filter(|k| k.part(7, 4) == part).count()).collect();
        assert!(parts.iter().all(|n| (900..1100).contains(n)), "{parts:?}");
    }
}
