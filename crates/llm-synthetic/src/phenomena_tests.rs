use std::collections::{BTreeMap, HashSet};

use super::super::{Split, World, WorldConfig, lexicon};
use super::*;

fn world() -> World {
    World::new(WorldConfig { corpus_bytes: 1_000_000, ..WorldConfig::default() })
}

/// Without the deciding word, each prefix occurs equally often with both answers. A predictor that ignores this word has an
/// accuracy of one half.
#[test]
fn only_the_deciding_word_determines_the_answer() {
    for phenomenon in Phenomenon::ALL {
        let mut answers: BTreeMap<(String, String), i32> = BTreeMap::new();
        for probe in world().probes(phenomenon, 400) {
            assert!(probe.phenomenon == phenomenon && probe.good != probe.bad);
            let first = probe.good.clone().min(probe.bad.clone());
            let sign = if probe.good == first { 1 } else { -1 };
            *answers.entry((probe.without_deciding(), first)).or_default() += sign;
        }
        assert!(answers.len() > 80 && answers.values().all(|balance| *balance == 0), "{phenomenon:?}");
    }
}

#[test]
fn the_deciding_word_is_out_of_reach_of_5_grams() {
    for phenomenon in Phenomenon::ALL {
        for probe in world().probes(phenomenon, 200) {
            let words_after = probe.prefix[probe.deciding.end..].split_whitespace().count();
            assert!(words_after >= 5, "{probe:?}");
        }
    }
}

/// Each word means the animal at half of the places, and at each place half of the words mean the animal.
#[test]
fn neither_the_word_nor_the_place_alone_determines_the_sense() {
    let animals = |h: &lexicon::Homonym| (0..SIGHTS.len()).filter(|&place| h.is_animal_at(place)).count();
    assert!(HOMONYMS.iter().all(|h| animals(h) == SIGHTS.len() / 2));
    for (place, name) in SIGHTS.iter().enumerate() {
        let animals = HOMONYMS.iter().filter(|h| h.is_animal_at(place)).count();
        assert_eq!(animals, HOMONYMS.len() / 2, "{name}");
    }
    // The probes are balanced exactly.
    for frame in world().probes(Phenomenon::WordSense, 400).chunks(4) {
        let animal = |p: &Probe| ANIMAL_OUTCOMES.iter().any(|o| p.good.contains(o));
        assert_eq!(frame.iter().map(animal).collect::<Vec<_>>().iter().filter(|a| **a).count(), 2);
        assert!(animal(&frame[0]) != animal(&frame[1]) && animal(&frame[0]) != animal(&frame[2]));
    }
}

#[test]
fn distractors_of_both_numbers_are_between_subject_and_verb() {
    let plural: HashSet<&str> = SPOTS.iter().map(|s| s.1).collect();
    for probe in world().probes(Phenomenon::Agreement, 200) {
        let words: Vec<&str> = probe.prefix.split(' ').collect();
        assert_ne!(plural.contains(words[4]), plural.contains(words[7]), "{}", probe.prefix);
    }
    for probe in world().probes(Phenomenon::Pronoun, 200) {
        let words: Vec<&str> = probe.prefix.split(' ').collect();
        assert_ne!(WOMEN.contains(&words[0]), WOMEN.contains(&words[2]), "{}", probe.prefix);
    }
}

#[test]
fn a_negation_frame_has_all_four_cells() {
    for frame in world().probes(Phenomenon::Negation, 200).chunks(4) {
        let negated = |p: &Probe| p.prefix[p.deciding.clone()] == *"not";
        assert_eq!(frame.iter().filter(|p| negated(p)).count(), 2);
        // The same words with and without "not" need opposite continuations.
        assert_eq!(frame[0].without_deciding(), frame[1].without_deciding());
        assert_eq!((&frame[0].good, &frame[0].bad), (&frame[1].bad, &frame[1].good));
        assert_eq!(frame[0].good, frame[3].good);
    }
}

#[test]
fn both_continuations_occur_in_the_corpus() {
    let corpus = world().corpus(Split::Train).join(" ");
    for phenomenon in Phenomenon::ALL {
        let probes = world().probes(phenomenon, 200);
        let missing = probes.iter().find(|p| !corpus.contains(p.bad.trim_end_matches('.')));
        assert!(missing.is_none(), "{missing:?}");
    }
}
