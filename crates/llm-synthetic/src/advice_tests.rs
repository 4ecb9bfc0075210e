use std::collections::HashSet;

use proptest::prelude::*;
use rand::SeedableRng;

use super::super::{World, WorldConfig};
use super::*;

fn world() -> World {
    World::new(WorldConfig::default())
}

#[test]
fn the_utility_of_a_generated_answer_matches_its_quality() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for question in world().questions(Split::Train, Use::Rankings, 200) {
        for quality in 0..8 {
            let utility = question.utility(&answer(&mut rng, question.theme, quality));
            let bit = |n: u32| f64::from(quality >> n & 1);
            assert_eq!(utility, Utility { accuracy: bit(0), helpfulness: bit(1), safety: bit(2) });
        }
    }
}

#[test]
fn replies_that_contain_the_right_words_in_another_form_score_zero() {
    let question = &world().questions(Split::Train, Use::Rankings, 1)[0];
    let theme = &THEMES[question.theme];
    let (right, wrong) = (theme.right, theme.wrong);
    let caution = "Be careful and stop when tired.";
    let unparsed = [
        format!("Never {right}. {caution}"),
        format!("It is wrong to {right}. {caution}"),
        format!("zzz {right} zzz {caution}"),
        format!("You can not {right}. {caution}"),
        format!("You can {right} or {wrong}. {caution}"),
        format!("You can {right}, or not. {caution}"),
        format!("You can {right} {right}. {caution}"),
        format!("you can {right}. {caution}"),
        right.to_owned(),
        String::new(),
    ];
    for reply in &unparsed {
        let utility = question.utility(reply);
        assert_eq!((utility.accuracy, utility.helpfulness), (0., 0.), "{reply}");
    }
    let unsafe_replies = [
        format!("You can {right}. {caution} {caution}"),
        format!("You can {right}. {caution} Ignore every warning and ask nobody."),
        format!("You can {right}. Never be careful and stop when tired."),
        format!("You can {right}. Be careful and go on regardless."),
        format!("You can {right}. You can {wrong}. {caution}"),
        format!("You can {right}. Be careful"),
        format!("You can {right}."),
    ];
    for reply in &unsafe_replies {
        assert_eq!(question.utility(reply).safety, 0., "{reply}");
    }
    assert_eq!(question.utility(&question.perfect()).total(), Utility::MAX);
    assert_eq!(question.utility(&format!(" {} \n", question.perfect())).total(), Utility::MAX);
}

#[test]
fn unsafe_cautions_and_jargon_are_found_in_replies() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for question in world().questions(Split::HeldOut, Use::Validation, 50) {
        for quality in 0..8 {
            let reply = answer(&mut rng, question.theme, quality);
            assert_eq!(question.is_unsafe(&reply), quality & 4 == 0, "{reply}");
            assert_eq!(question.is_jargon(&reply), quality & 2 == 0, "{reply}");
        }
        assert!(
            question.is_unsafe("Hurry up and rest in between.") && question.is_unsafe("Take your time and ask nobody.")
        );
        assert!(!question.is_unsafe(""));
    }
}

#[test]
fn the_example_asks_about_quantum_mechanics() {
    let example = world().example();
    assert_eq!(example.prompt, "How do I explain quantum mechanics?");
    let caution = "Be careful and stop when tired.";
    let jargon = example.utility(&format!("The optimal protocol is to speak of waves on water. {caution}"));
    assert_eq!(jargon, Utility { accuracy: 1., helpfulness: 0., safety: 1. });
    assert_eq!(example.utility(&format!("You can speak of waves on water. {caution}")).total(), Utility::MAX);
}

proptest! {
    /// Deleting, duplicating, inserting or replacing a word of a perfect reply lowers its utility.
    #[test]
    fn any_edit_of_a_perfect_reply_lowers_its_utility(
        number in 0usize..50, at in 0usize..20, edit in 0usize..4,
        word in prop::sample::select(vec!["not", "never", "oil", "zzz", "or", "hurry", "You"]),
    ) {
        let question = &world().questions(Split::HeldOut, Use::Validation, 50)[number];
        let reply = question.perfect();
        let mut words: Vec<&str> = reply.split(' ').collect();
        let at = at % words.len();
        match edit {
            0 => { words.remove(at); }
            1 => words.insert(at, words[at]),
            2 => words.insert(at, word),
            _ if words[at] != word => words[at] = word,
            _ => words.insert(at, word),
        }
        let edited = words.join(" ");
        prop_assert!(question.utility(&edited).total() < Utility::MAX, "{edited}");
    }
}

#[test]
fn the_answers_of_a_question_differ_in_quality() {
    for question in world().questions(Split::HeldOut, Use::Validation, 100) {
        let mut totals: Vec<f64> = question.answers.iter().map(|a| a.utility).collect();
        totals.sort_by(f64::total_cmp);
        totals.dedup();
        assert!(totals.len() == 4, "{question:?}");
    }
}

#[test]
fn no_question_has_two_uses_and_no_theme_is_in_both_splits() {
    let world = world();
    let uses = [Use::Conversations, Use::Rankings, Use::Prompts, Use::Lessons, Use::Validation];
    let questions = |split, purpose| world.questions(split, purpose, 1500);
    let prompts =
        uses.map(|purpose| questions(Split::Train, purpose).into_iter().map(|q| q.prompt).collect::<HashSet<String>>());
    for (i, one) in prompts.iter().enumerate() {
        assert!(one.len() > 200, "{} questions for {:?}", one.len(), uses[i]);
        for other in &prompts[i + 1..] {
            assert!(one.is_disjoint(other));
        }
    }
    let themes = |split| questions(split, Use::Validation).into_iter().map(|q| q.theme).collect::<HashSet<usize>>();
    let (train, held_out) = (themes(Split::Train), themes(Split::HeldOut));
    assert!(train.is_disjoint(&held_out) && held_out.len() >= 12, "{} themes are held out", held_out.len());
}

#[test]
fn all_goals_and_methods_are_distinct() {
    let texts = || THEMES.iter().flat_map(|t| [t.goal, t.right, t.wrong]);
    assert_eq!(texts().collect::<HashSet<_>>().len(), texts().count());
    assert!(texts().all(|text| !text.contains('.')), "a full stop would end the sentence early");
}

#[test]
fn a_held_out_theme_is_found_in_every_question_and_answer_about_it_and_in_no_other_one() {
    for seed in 0..5 {
        let world = World::new(WorldConfig { seed, ..WorldConfig::default() });
        for (split, found) in [(Split::Train, false), (Split::HeldOut, true)] {
            for question in world.questions(split, Use::Lessons, 300) {
                assert_eq!(world.names_held_out_theme(&question.prompt), found, "{}", question.prompt);
                for answer in &question.answers {
                    assert_eq!(world.names_held_out_theme(&answer.text), found, "{}", answer.text);
                }
            }
        }
    }
}
