//! Hashes of words and of n-grams of words. They are the same on every machine.

use twox_hash::XxHash3_64;

/// The hash of a text (XXH3, 64 bits).
pub(super) fn hash_text(text: &str) -> u64 {
    XxHash3_64::oneshot(text.as_bytes())
}

/// The hash of a sequence of hashes.
pub(super) fn window_hash(hashes: impl IntoIterator<Item = u64>) -> u64 {
    hashes.into_iter().fold(0, |all, hash| mix(all.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ hash))
}

/// The finaliser of `SplitMix64` (Steele, Lea and Flood 2014): a permutation of 64-bit numbers.
pub(super) fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
