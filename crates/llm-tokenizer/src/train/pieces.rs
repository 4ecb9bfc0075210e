//! Counts the pieces of a corpus in bounded memory.

use ahash::AHashMap;

/// Longer pieces are cut, in bytes: merges inside of them cannot be seen from elsewhere, and their number of distinct forms has no
/// bound.
pub(super) const MAX_PIECE: usize = 1024;
/// Memory of a piece besides its text, in bytes: pointer, length, count and its place in the table.
const OVERHEAD: usize = 48;
/// When the pieces need more memory, the rarest are removed, in bytes.
pub(super) const MAX_MEMORY: usize = 192 << 20;

/// The number of occurrences of each piece.
#[derive(Debug)]
pub(super) struct PieceCounts {
    counts: AHashMap<Box<str>, i64>,
    /// Memory of the pieces, in bytes.
    memory: usize,
    max_memory: usize,
    /// Number of occurrences of the pieces that were removed.
    pub(super) removed: i64,
}

impl PieceCounts {
    pub(super) fn new(max_memory: usize) -> Self {
        Self { counts: AHashMap::new(), memory: 0, max_memory, removed: 0 }
    }

    /// Adds occurrences of a piece.
    pub(super) fn add(&mut self, piece: &str, count: i64) {
        match self.counts.get_mut(piece) {
            Some(all) => *all = all.saturating_add(count),
            None => {
                self.memory += piece.len() + OVERHEAD;
                self.counts.insert(piece.into(), count);
            }
        }
    }

    /// Removes the rarest pieces if there are too many, so that half of the memory is free again: those with the fewest occurrences
    /// so far, the last in the alphabet first. Call it after the same text for any number of threads.
    pub(super) fn limit(&mut self) {
        if self.memory <= self.max_memory {
            return;
        }
        let mut all: Vec<(Box<str>, i64)> = self.counts.drain().collect();
        all.sort_unstable_by(|(a, m), (b, n)| n.cmp(m).then_with(|| a.cmp(b)));
        self.memory = 0;
        for (piece, count) in all {
            let memory = self.memory + piece.len() + OVERHEAD;
            if memory > self.max_memory / 2 {
                self.removed += count;
            } else {
                self.memory = memory;
                self.counts.insert(piece, count);
            }
        }
    }

    /// Number of distinct pieces.
    pub(super) fn len(&self) -> usize {
        self.counts.len()
    }

    /// Number of bytes of the distinct pieces.
    pub(super) fn bytes(&self) -> usize {
        self.memory - self.len() * OVERHEAD
    }

    /// Memory of the pieces, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.memory
    }

    /// The pieces and counts, in any order.
    pub(super) fn into_pieces(self) -> impl Iterator<Item = (Box<str>, i64)> {
        self.counts.into_iter()
    }

    /// The pieces and counts in alphabetical order.
    pub(super) fn into_sorted(self) -> Vec<(Box<str>, i64)> {
        let mut all: Vec<(Box<str>, i64)> = self.counts.into_iter().collect();
        all.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        all
    }
}

/// Cuts a piece into parts of at most [`MAX_PIECE`] bytes, between characters.
pub(super) fn parts(piece: &str) -> impl Iterator<Item = &str> {
    let mut rest = piece;
    std::iter::from_fn(move || {
        let (part, after) = rest.split_at(rest.floor_char_boundary(MAX_PIECE));
        rest = after;
        Some(part).filter(|part| !part.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_piece_is_cut_between_characters() {
        let text = "é".repeat(1000) + "x";
        let cut: Vec<&str> = parts(&text).collect();
        assert_eq!(cut.iter().map(|part| part.len()).collect::<Vec<_>>(), [1024, 977]);
        assert_eq!(cut.concat(), text);
        assert_eq!((parts("ab").count(), parts("").count()), (1, 0));
    }

    #[test]
    fn the_rarest_pieces_are_removed_when_the_memory_is_full() {
        let mut counts = PieceCounts::new(8 * (OVERHEAD + 1));
        for (piece, count) in ["a", "b", "c", "d", "e", "f", "g", "h"].iter().zip([5, 1, 7, 2, 1, 3, 1, 9]) {
            counts.add(piece, count);
            counts.limit();
        }
        assert_eq!((counts.len(), counts.removed), (8, 0));
        counts.add("i", 1);
        counts.limit();
        assert_eq!((counts.len(), counts.removed, counts.bytes()), (4, 6, 4));
        counts.add("a", i64::from(u32::MAX));
        let left: Vec<(Box<str>, i64)> = counts.into_sorted();
        assert_eq!(left, [("a".into(), 4294967300), ("c".into(), 7), ("f".into(), 3), ("h".into(), 9)]);
    }
}
