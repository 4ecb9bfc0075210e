//! The rules against those of datatrove (`tests/golden/make_filters.py`).

use serde_json::Value;

use super::characters::Scrubber;
use super::words::simplify;
use super::{Addresses, C4, Fineweb, GopherQuality, GopherRepetition};

/// The names of datatrove for the rules.
const REASONS: [(&str, &str); 31] = [
    ("gopher_short_doc", "too few words"),
    ("gopher_long_doc", "too many words"),
    ("gopher_below_avg_threshold", "words too short"),
    ("gopher_above_avg_threshold", "words too long"),
    ("gopher_too_many_hashes", "too many hashes"),
    ("gopher_too_many_ellipsis", "too many ellipses"),
    ("gopher_too_many_bullets", "too many bullet lines"),
    ("gopher_too_many_end_ellipsis", "too many lines that end with an ellipsis"),
    ("gopher_below_alpha_threshold", "too few words with a letter"),
    ("gopher_enough_stop_words", "too few stop words"),
    ("dup_para_frac", "repeated paragraphs"),
    ("dup_para_char_frac", "characters in repeated paragraphs"),
    ("dup_line_frac", "repeated lines"),
    ("dup_line_char_frac", "characters in repeated lines"),
    ("top_2_gram", "top 2-gram"),
    ("top_3_gram", "top 3-gram"),
    ("top_4_gram", "top 4-gram"),
    ("duplicated_5_n_grams", "repeated 5-grams"),
    ("duplicated_6_n_grams", "repeated 6-grams"),
    ("duplicated_7_n_grams", "repeated 7-grams"),
    ("duplicated_8_n_grams", "repeated 8-grams"),
    ("duplicated_9_n_grams", "repeated 9-grams"),
    ("duplicated_10_n_grams", "repeated 10-grams"),
    ("lorem_ipsum", "lorem ipsum"),
    ("curly_bracket", "curly bracket"),
    ("too_few_sentences", "too few sentences"),
    ("line_punct_ratio", "too few lines that end a sentence"),
    ("short_line_ratio", "too many short lines"),
    ("char_dup_ratio", "characters in repeated lines"),
    ("list_ratio", "too many line ends"),
    ("empty", "empty"),
];

/// Our name of a rule of datatrove.
fn ours(reason: &Value) -> Option<&'static str> {
    let reason = reason.as_str()?;
    let known = REASONS.iter().find(|(theirs, _)| *theirs == reason);
    Some(known.unwrap_or_else(|| panic!("a rule without a name here: {reason}")).1)
}

fn rows() -> Vec<Value> {
    let text = include_str!("../../tests/golden/filters.jsonl");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn rules_remove_what_those_of_datatrove_remove_and_for_the_same_reason() {
    let scrubber = Scrubber::new(&Addresses::default()).unwrap();
    let mut fired = std::collections::BTreeSet::new();
    for row in rows() {
        let text = row["text"].as_str().unwrap();
        if let Some(simple) = row["simple"].as_str() {
            assert_eq!(simplify(text), simple, "{text:?}");
        }
        assert_eq!(scrubber.apply(text).as_deref(), row["addresses"].as_str(), "{text:?}");
        if text.trim().is_empty() {
            continue;
        }
        let checks = [
            ("gopher_quality", GopherQuality::default().broken_rule(text)),
            ("gopher_repetition", GopherRepetition::default().broken_rule(text)),
            ("fineweb", Fineweb::default().broken_rule(text)),
        ];
        for (name, broken) in checks {
            assert_eq!(broken, ours(&row[name]), "{name} of {text:?}");
            fired.extend(broken.map(|rule| (name, rule)));
        }
        for (name, rules) in
            [("c4", C4::default()), ("c4_fineweb", C4 { terminal_punctuation: false, ..C4::default() })]
        {
            match rules.kept_lines(text) {
                Ok(kept) => {
                    let expected = row[name]["text"].as_str().unwrap_or(text);
                    assert_eq!((kept.as_str(), ours(&row[name])), (expected, None), "{name} of {text:?}");
                }
                Err(rule) => {
                    assert_eq!(Some(rule), ours(&row[name]), "{name} of {text:?}");
                    fired.insert((name, rule));
                }
            }
        }
    }
    // Each rule but the largest number of words must decide a document, or the comparison says nothing about it.
    for (name, rules) in [("gopher_quality", 9), ("gopher_repetition", 6), ("fineweb", 4), ("c4", 3), ("c4_fineweb", 3)]
    {
        let found: Vec<&str> = fired.iter().filter(|(step, _)| *step == name).map(|(_, rule)| *rule).collect();
        assert!(found.len() >= rules, "{name}: {found:?}");
    }
}

/// Article 1 of the Universal Declaration of Human Rights, which is in the public domain.
#[test]
fn languages_of_the_declaration_of_human_rights_are_detected() {
    for (code, text) in [
        (
            "eng",
            "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience and \
             should act towards one another in a spirit of brotherhood.",
        ),
        (
            "deu",
            "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt und \
             sollen einander im Geiste der Brüderlichkeit begegnen.",
        ),
        (
            "fra",
            "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de conscience \
             et doivent agir les uns envers les autres dans un esprit de fraternité.",
        ),
        (
            "spa",
            "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y conciencia, \
             deben comportarse fraternalmente los unos con los otros.",
        ),
        (
            "rus",
            "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью и должны \
             поступать в отношении друг друга в духе братства.",
        ),
        ("cmn", "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。"),
    ] {
        let keep = |code: &str| super::Language { languages: vec![code.to_owned()], ..super::Language::default() };
        assert_eq!(keep(code).broken_rule(text), None, "{code}");
        let other = if code == "eng" { "deu" } else { "eng" };
        assert_eq!(keep(other).broken_rule(text), Some(format!("language {code}")));
    }
}
