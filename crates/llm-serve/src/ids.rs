//! Ids that nobody can guess, and seeds.

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// 64 random bits, different at each call: a keyed hash of a counter, with a key that the system chose at random.
pub(crate) fn random() -> u64 {
    static KEY: OnceLock<RandomState> = OnceLock::new();
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    KEY.get_or_init(RandomState::new).hash_one(COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// An id such as `chatcmpl-…` with 96 random bits.
pub(crate) fn id(prefix: &str) -> String {
    format!("{prefix}{:016x}{:08x}", random(), random() as u32)
}

/// The time in seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    #[test]
    fn ids_differ() {
        let ids: HashSet<String> = (0..10_000).map(|_| super::id("call_")).collect();
        assert!(ids.len() == 10_000 && ids.iter().all(|id| id.len() == 29 && id.starts_with("call_")));
    }
}
