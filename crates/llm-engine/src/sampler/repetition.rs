//! Repeated sequences at the end of a text, for the DRY sampler.

use std::collections::HashMap;

/// For each token that followed an earlier copy of the end of `ids`, the length of the longest such copy, at most `longest`, if it is
/// at least `shortest`. Copies may overlap.
///
/// The Z algorithm (Gusfield 1997, 1.3) on the reversed ids finds all lengths in linear time.
pub fn repeated_sequences(ids: &[u32], longest: usize, shortest: usize) -> HashMap<u32, usize> {
    let reversed: Vec<u32> = ids.iter().rev().copied().collect();
    let mut lengths = HashMap::new();
    for (at, length) in common_prefixes(&reversed).into_iter().enumerate().skip(1) {
        let length = length.min(longest);
        if length >= shortest {
            // The copy ends before the token at `at - 1` of the reversed ids.
            let known = lengths.entry(reversed[at - 1]).or_insert(0);
            *known = length.max(*known);
        }
    }
    lengths
}

/// The length of the longest common prefix of the ids and their part from each position on.
fn common_prefixes(ids: &[u32]) -> Vec<usize> {
    let mut lengths = vec![0; ids.len()];
    // The part [start, end) that reaches furthest and is equal to a prefix.
    let (mut start, mut end) = (0, 0);
    for at in 1..ids.len() {
        let mut length = if at < end { lengths[at - start].min(end - at) } else { 0 };
        while at + length < ids.len() && ids[length] == ids[at + length] {
            length += 1;
        }
        if at + length > end {
            (start, end) = (at, at + length);
        }
        lengths[at] = length;
    }
    lengths
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: compares every earlier position with the end, token by token.
    fn by_definition(ids: &[u32], longest: usize, shortest: usize) -> HashMap<u32, usize> {
        let mut lengths = HashMap::new();
        for next in 1..ids.len() {
            let pairs = ids[..next].iter().rev().zip(ids.iter().rev());
            let length = pairs.take_while(|(a, b)| a == b).count().min(longest);
            if length >= shortest {
                let known = lengths.entry(ids[next]).or_insert(0);
                *known = length.max(*known);
            }
        }
        lengths
    }

    #[test]
    fn the_lengths_are_those_of_the_definition() {
        assert_eq!(repeated_sequences(&[1, 2, 3, 9, 1, 2, 3], 9, 2), [(9, 3)].into());
        assert_eq!(repeated_sequences(&[7, 7, 7, 7], 9, 2), [(7, 3)].into());
        assert_eq!(repeated_sequences(&[], 9, 1), HashMap::new());
        let mut found = 0;
        for seed in 0..500u32 {
            let ids: Vec<u32> = (0..seed % 40).map(|i| (seed * 31 + i * i * 7 + i / 3) % (2 + seed % 3)).collect();
            for (longest, shortest) in [(usize::MAX, 1), (3, 2), (2, 3)] {
                let lengths = repeated_sequences(&ids, longest, shortest);
                assert_eq!(lengths, by_definition(&ids, longest, shortest), "{ids:?}");
                found += lengths.len();
            }
        }
        assert!(found > 500);
    }
}
