//! Packing of items of different lengths: best-fit decreasing (Johnson 1973; for language models Ding et al. 2024, arXiv 2404.10830).

use std::cmp::Reverse;
use std::collections::BTreeSet;

/// Packs items with these lengths: each item, the longest first, goes into the fullest pack where it fits, otherwise into a new
/// pack. Returns the items of each pack, in the order in which the packs were opened.
///
/// Items of equal length keep their order. Of packs that are equally full, the one opened first is taken. The lengths of a pack
/// add up to at most `capacity`; an item that is longer has a pack of its own. O(n log n) for n items.
///
/// ```
/// assert_eq!(llm_data::best_fit_decreasing(&[3, 4, 1], 4), [vec![1], vec![0, 2]]);
/// ```
pub fn best_fit_decreasing(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut items: Vec<usize> = (0..lengths.len()).collect();
    items.sort_by_key(|&item| Reverse(lengths[item]));
    let mut packs: Vec<Vec<usize>> = Vec::new();
    let mut open: BTreeSet<(usize, usize)> = BTreeSet::new(); // (free, pack)
    for item in items {
        let length = lengths[item];
        let (free, pack) = match open.range((length, 0)..).next().copied() {
            Some(found) => {
                open.remove(&found);
                found
            }
            None => {
                packs.push(Vec::new());
                (capacity.max(length), packs.len() - 1)
            }
        };
        packs[pack].push(item);
        open.insert((free - length, pack));
    }
    packs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths_of(packs: &[Vec<usize>], lengths: &[usize]) -> Vec<Vec<usize>> {
        packs.iter().map(|pack| pack.iter().map(|&item| lengths[item]).collect()).collect()
    }

    /// The expected values of `tests/test_data_utils.py` of TRL, strategies `bfd` and, with the items already split, `bfd_split`.
    #[test]
    fn packs_are_those_of_trl() {
        assert_eq!(best_fit_decreasing(&[3, 4, 1], 4), [vec![1], vec![0, 2]]);
        assert_eq!(
            lengths_of(&best_fit_decreasing(&[4, 1, 2, 4, 1], 4), &[4, 1, 2, 4, 1]),
            [vec![4], vec![4], vec![2, 1, 1]]
        );
        assert_eq!(best_fit_decreasing(&[4, 1, 2, 4, 1], 4), [vec![0], vec![3], vec![2, 1, 4]]);
    }

    #[test]
    fn every_item_is_in_one_pack_that_it_fits_into() {
        let lengths: Vec<usize> = (0..500).map(|i| i * 37 % 61).collect();
        let packs = best_fit_decreasing(&lengths, 64);
        let mut all = packs.concat();
        all.sort_unstable();
        assert_eq!(all, (0..500).collect::<Vec<_>>());
        let sums: Vec<usize> = packs.iter().map(|pack| pack.iter().map(|&i| lengths[i]).sum()).collect();
        assert!(sums.iter().all(|&sum| sum <= 64));
        // Best-fit decreasing needs at most 11/9 of the packs of the best packing, plus one (Johnson 1973).
        let least = lengths.iter().sum::<usize>().div_ceil(64);
        assert!(packs.len() <= least * 11 / 9 + 1, "{} packs, at least {least} are needed", packs.len());
    }

    #[test]
    fn an_item_that_is_too_long_is_alone() {
        assert_eq!(best_fit_decreasing(&[9, 2, 2], 4), [vec![0], vec![1, 2]]);
        assert_eq!(best_fit_decreasing(&[], 4), Vec::<Vec<usize>>::new());
    }
}
