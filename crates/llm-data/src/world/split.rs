//! Which side of the split an item of the world is on.
//!
//! The unit that is to generalise has one [`SplitKey`]: a fact, a word, a theme, a sum, a frame of a sentence. The split
//! is a hash of the world's seed and that key, decided before any wording, role, greeting or example is put around it.

use serde::{Deserialize, Serialize};

/// Which side of the split an item is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// For training.
    Train,
    /// For validation: its key never occurs in the training data of the stage that is tested.
    HeldOut,
}

/// The name of what must not be in both splits, such as `capital:France` or `theme:put out a candle`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SplitKey(String);

/// Items that the documentation asks a model about, so that they are held out whatever the seed.
const ALWAYS_HELD_OUT: [&str; 2] = ["capital:France", "story:3-1+5"];

impl SplitKey {
    /// The key of the item `name` of a kind of items.
    pub fn new(kind: &str, name: impl std::fmt::Display) -> Self {
        Self(format!("{kind}:{name}"))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The split of this key in the world of `seed`, where one key of `one_in` is held out.
    pub fn split(&self, seed: u64, one_in: u64) -> Split {
        let forced = ALWAYS_HELD_OUT.contains(&self.0.as_str());
        if forced || self.hash(seed).is_multiple_of(one_in) { Split::HeldOut } else { Split::Train }
    }

    /// The same where the keys are known: exactly one of `one_in` of `all`, which this key is one of, is held out.
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

    /// The part, of `parts` of equal size, that this key belongs to.
    pub fn part(&self, seed: u64, parts: u64) -> u64 {
        self.hash(seed.wrapping_add(0x9e37_79b9)) % parts
    }

    /// FNV-1a over the seed and the bytes of the key, its upper bits mixed into the lower ones.
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
    fn a_key_is_on_one_side_and_the_share_held_out_is_as_asked() {
        let keys: Vec<SplitKey> = (0..4000).map(|i| SplitKey::new("word", i)).collect();
        let held_out = |seed| keys.iter().filter(|k| k.split(seed, 4) == Split::HeldOut).count();
        assert!((900..1100).contains(&held_out(1)) && (900..1100).contains(&held_out(2)));
        assert!(keys.iter().any(|k| k.split(1, 4) != k.split(2, 4)), "the seed decides, too");
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
