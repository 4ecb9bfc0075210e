//! Which pages of the KV cache are in use, shared, cached or free.
//!
//! A full page has a key: the hash of all tokens up to its end. A page that no sequence uses keeps its content until it is
//! needed for something else, the one that was used least recently first.

use std::collections::{BTreeMap, HashMap};

/// The hash of the tokens up to the end of a page, with what else its content depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageKey([u8; 16]);

impl PageKey {
    /// The key before the first page. Only sequences with the same `adapter` and `salt` share pages.
    pub fn root(adapter: &str, salt: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in [adapter, salt] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        Self::of(&hasher)
    }

    /// The key of the page with `ids` after this one.
    pub fn next(self, ids: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        for id in ids {
            hasher.update(&id.to_le_bytes());
        }
        Self::of(&hasher)
    }

    fn of(hasher: &blake3::Hasher) -> Self {
        let mut key = [0; 16];
        key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(key)
    }
}

#[derive(Debug, Clone, Default)]
struct Page {
    /// How many sequences use it.
    users: u32,
    key: Option<PageKey>,
    /// When it was released, for cached pages without a user.
    released: u64,
}

/// The pages of a pool.
#[derive(Debug)]
pub struct Pages {
    pages: Vec<Page>,
    free: Vec<u32>,
    by_key: HashMap<PageKey, u32>,
    /// Cached pages without a user, by the time of their release.
    cached: BTreeMap<u64, u32>,
    clock: u64,
}

impl Pages {
    /// A pool of `count` free pages.
    pub fn new(count: usize) -> Self {
        Self {
            pages: vec![Page::default(); count],
            free: (0..count as u32).rev().collect(),
            by_key: HashMap::new(),
            cached: BTreeMap::new(),
            clock: 0,
        }
    }

    /// The number of pages.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// The number of pages that [`Self::allocate`] can give out.
    pub fn available(&self) -> usize {
        self.free.len() + self.cached.len()
    }

    /// The number of pages that sequences use.
    pub fn used(&self) -> usize {
        self.len() - self.available()
    }

    /// A page for new content, used once; none if all are in use. It can forget a cached page.
    pub fn allocate(&mut self) -> Option<u32> {
        let page = match self.free.pop() {
            Some(page) => page,
            None => {
                let (_, page) = self.cached.pop_first()?;
                if let Some(key) = self.pages[page as usize].key.take() {
                    self.by_key.remove(&key);
                }
                page
            }
        };
        self.pages[page as usize].users = 1;
        Some(page)
    }

    /// The page with this key, if it is cached or in use.
    pub fn find(&self, key: &PageKey) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    /// Whether a page has no user.
    pub fn is_unused(&self, page: u32) -> bool {
        self.pages[page as usize].users == 0
    }

    /// Adds a user to a page that is in use or cached.
    pub fn share(&mut self, page: u32) {
        let entry = &mut self.pages[page as usize];
        if entry.users == 0 {
            self.cached.remove(&entry.released);
        }
        entry.users += 1;
    }

    /// The content of a page in use is complete and will not change. If another page has the same content, nothing happens.
    pub fn publish(&mut self, page: u32, key: PageKey) {
        let entry = &mut self.pages[page as usize];
        if entry.key.is_none() && !self.by_key.contains_key(&key) {
            entry.key = Some(key);
            self.by_key.insert(key, page);
        }
    }

    /// Removes a user of a page.
    pub fn release(&mut self, page: u32) {
        let entry = &mut self.pages[page as usize];
        entry.users -= 1;
        if entry.users > 0 {
            return;
        }
        if entry.key.is_some() {
            self.clock += 1;
            entry.released = self.clock;
            self.cached.insert(self.clock, page);
        } else {
            self.free.push(page);
        }
    }

    /// The number of users of each page.
    #[cfg(test)]
    pub fn users(&self) -> Vec<u32> {
        self.pages.iter().map(|page| page.users).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_depends_on_all_tokens_before_and_on_adapter_and_salt() {
        let root = PageKey::root("", "");
        let keys = [
            root.next(&[1, 2]),
            root.next(&[1, 3]),
            root.next(&[1, 2]).next(&[1, 2]),
            root.next(&[9, 2]).next(&[1, 2]),
            PageKey::root("a", "").next(&[1, 2]),
            PageKey::root("", "a").next(&[1, 2]),
            PageKey::root("a", "b").next(&[1, 2]),
            PageKey::root("ab", "").next(&[1, 2]),
        ];
        for (i, key) in keys.iter().enumerate() {
            assert!(!keys[..i].contains(key), "{i}");
        }
        assert_eq!(root.next(&[1, 2]), PageKey::root("", "").next(&[1, 2]));
    }

    #[test]
    fn the_page_that_was_released_first_is_forgotten_first() {
        let mut pages = Pages::new(3);
        let keys: Vec<PageKey> = (0..3).map(|i| PageKey::root("", "").next(&[i])).collect();
        let all: Vec<u32> = keys.iter().map(|_| pages.allocate().unwrap()).collect();
        assert_eq!(pages.allocate(), None);
        all.iter().zip(&keys).for_each(|(&page, &key)| pages.publish(page, key));
        [1, 0, 2].iter().for_each(|&i| pages.release(all[i]));
        pages.share(all[1]);
        pages.release(all[1]); // now the last one that was used
        assert_eq!((pages.available(), pages.allocate()), (3, Some(all[0])));
        assert_eq!([0, 1, 2].map(|i: usize| pages.find(&keys[i]).is_some()), [false, true, true]);
        assert_eq!((pages.allocate(), pages.allocate()), (Some(all[2]), Some(all[1])));
        assert_eq!((pages.used(), pages.allocate()), (3, None));
    }

    #[test]
    fn a_second_page_with_the_same_content_is_not_cached() {
        let mut pages = Pages::new(2);
        let key = PageKey::root("", "").next(&[1]);
        let (first, second) = (pages.allocate().unwrap(), pages.allocate().unwrap());
        pages.publish(first, key);
        pages.publish(second, key);
        pages.release(second);
        assert_eq!((pages.find(&key), pages.allocate()), (Some(first), Some(second)));
    }
}
