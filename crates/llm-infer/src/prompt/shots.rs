//! Examples of inputs with their outputs (few-shot prompts, Brown et al. 2020).

use std::path::Path;

use clap::ValueEnum;
use llm_cli::Failure;
use serde::Deserialize;

use crate::failure::io_failure;

/// An example.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shot {
    pub(crate) input: String,
    pub(crate) output: String,
}

/// The order of the examples in the prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ShotOrder {
    /// That of the file: the first lines
    #[default]
    File,
    /// The first lines of the file, the last of them first
    Reverse,
    /// A random choice in random order, by --shots-seed
    Random,
}

/// Reads examples, one JSON object with `input` and `output` a line.
pub(super) fn read(path: &Path) -> Result<Vec<Shot>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| io_failure(path.display(), &e))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let shots = lines.map(|(at, line)| {
        serde_json::from_str(line).map_err(|e| {
            let form = "it must be {\"input\": \"...\", \"output\": \"...\"}";
            Failure::input(format!("{} line {}: {e}; {form}", path.display(), at + 1))
        })
    });
    shots.collect()
}

/// The first `count` examples in this order; all without a count. An error if there are fewer.
pub(super) fn select(
    mut shots: Vec<Shot>,
    count: Option<usize>,
    order: ShotOrder,
    seed: u64,
) -> Result<Vec<Shot>, Failure> {
    let count = count.unwrap_or(shots.len());
    if count > shots.len() {
        return Err(Failure::input(format!(
            "--num-shots is {count}; the file has {} examples; use fewer",
            shots.len()
        )));
    }
    if order == ShotOrder::Random {
        // The shuffle of Fisher and Yates, of which the first `count` places are needed.
        let mut state = seed;
        for at in 0..count {
            let other = at + (split_mix(&mut state) % (shots.len() - at) as u64) as usize;
            shots.swap(at, other);
        }
    }
    shots.truncate(count);
    if order == ShotOrder::Reverse {
        shots.reverse();
    }
    Ok(shots)
}

/// The next random number of `SplitMix64` (Steele et al. 2014).
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shots(count: usize) -> Vec<Shot> {
        (0..count).map(|i| Shot { input: i.to_string(), output: String::new() }).collect()
    }

    fn inputs(count: Option<usize>, order: ShotOrder, seed: u64) -> String {
        select(shots(6), count, order, seed).unwrap().into_iter().map(|shot| shot.input).collect()
    }

    #[test]
    fn examples_are_chosen_and_ordered() {
        assert_eq!(inputs(None, ShotOrder::File, 0), "012345");
        assert_eq!(inputs(Some(2), ShotOrder::Reverse, 0), "10");
        assert_eq!(inputs(Some(0), ShotOrder::Random, 0), "");
        let orders: Vec<String> = (0..40).map(|seed| inputs(Some(3), ShotOrder::Random, seed)).collect();
        assert_eq!(orders[0], inputs(Some(3), ShotOrder::Random, 0), "the same seed gives the same examples");
        for i in 0..6 {
            assert!(orders.iter().any(|order| order.contains(&i.to_string())), "example {i} is never chosen");
        }
        let error = select(shots(2), Some(3), ShotOrder::File, 0).unwrap_err().to_string();
        assert_eq!(error, "--num-shots is 3; the file has 2 examples; use fewer");
    }

    #[test]
    fn the_random_numbers_are_those_of_the_reference() {
        // The first numbers of the C code of Vigna for the seed 1234567.
        let mut state = 1_234_567;
        assert_eq!(
            [(); 3].map(|()| split_mix(&mut state)),
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn a_broken_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shots.jsonl");
        std::fs::write(&path, "{\"input\": \"a\", \"output\": \"b\"}\n\n{\"input\": \"a\"}\n").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("shots.jsonl line 3: ") && error.contains("\"output\": \"...\""), "{error}");
    }
}
