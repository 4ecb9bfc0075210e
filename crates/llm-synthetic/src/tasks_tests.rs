use std::collections::HashSet;

use proptest::prelude::*;

use super::super::{World, WorldConfig};
use super::*;

fn tasks(split: Split, count: usize) -> Vec<Task> {
    World::new(WorldConfig::default()).tasks(split, count)
}

#[test]
fn every_task_accepts_its_answers_and_rejects_others() {
    let tasks = tasks(Split::HeldOut, 360);
    for (i, task) in tasks.iter().enumerate() {
        assert!(task.answers.iter().all(|answer| task.is_right(answer)), "{task:?}");
        assert!(!task.is_right("") && !task.is_right("I do not know."));
        let other = &tasks[(i + 6) % 360];
        assert!(
            other.answers[0] == task.answers[0] || !task.is_right(&other.answers[0]),
            "{task:?} accepts {}",
            other.answers[0]
        );
    }
}

/// A list of all possible answers, a negated answer, and the right answer among others are wrong.
#[test]
fn a_right_answer_with_additional_words_is_wrong() {
    for task in tasks(Split::HeldOut, 360) {
        let answer = &task.answers[0];
        for reply in [
            "animal fruit tool garment happy sad".to_owned(),
            "yellow, red, green, white, black, orange, purple, blue, brown".to_owned(),
            format!("{answer} {answer}"),
            format!("not {answer}"),
            format!("{answer} Or not."),
            format!("{answer} No, I mean something else."),
            answer.replace(" is ", " is not "),
            answer.replace(" = ", " = 1"),
        ] {
            assert!(reply == *answer || !task.is_right(&reply), "{task:?} accepts {reply}");
        }
    }
}

proptest! {
    /// Deleting, duplicating, inserting or replacing a word of a right answer makes it wrong, unless the result is another
    /// right answer.
    #[test]
    fn any_edit_of_a_right_answer_makes_it_wrong(
        number in 0usize..120, at in 0usize..20, edit in 0usize..4,
        word in prop::sample::select(vec!["not", "Paris", "red", "7", "animal", "sad", "or"]),
    ) {
        let task = &tasks(Split::HeldOut, 120)[number];
        let mut words: Vec<&str> = task.answers[0].split(' ').collect();
        let at = at % words.len();
        match edit {
            0 => { words.remove(at); }
            1 => words.insert(at, words[at]),
            2 => words.insert(at, word),
            _ => words[at] = word,
        }
        let edited = words.join(" ");
        let is_an_answer = task.answers.iter().any(|a| normalised(a) == normalised(&edited));
        prop_assert_eq!(task.is_right(&edited), is_an_answer, "{}", edited);
        let changed = normalised(&edited) != normalised(&task.answers[0]);
        prop_assert!(!changed || !is_an_answer || words.len() == 1, "{}", edited);
    }
}

#[test]
fn all_prompt_kinds_are_equally_frequent_and_all_topics_occur() {
    let tasks = tasks(Split::Train, 1200);
    for kind in PromptKind::ALL {
        assert_eq!(tasks.iter().filter(|t| t.kind == kind).count(), 200);
    }
    assert_eq!(tasks.iter().map(|t| t.topic).collect::<HashSet<_>>().len(), 10);
}

/// The same query word has different answers in different prompts, so the answer cannot be predicted without the examples.
#[test]
fn only_the_examples_define_the_few_shot_mapping() {
    let tasks = tasks(Split::Train, 6000);
    let few: Vec<&Task> = tasks.iter().filter(|t| t.kind == PromptKind::FewShot).collect();
    let query_word = |t: &&Task| {
        let prompt = t.messages[0].text();
        prompt.lines().last().unwrap_or_default().split([' ', ':']).next().unwrap_or_default().to_owned()
    };
    let mut answers: std::collections::BTreeMap<String, Vec<&str>> = std::collections::BTreeMap::new();
    for task in &few {
        answers.entry(query_word(task)).or_default().push(&task.answers[0]);
    }
    let mut most_common = 0;
    for given in answers.values() {
        most_common += given.iter().map(|a| given.iter().filter(|b| *b == a).count()).max().unwrap_or(0);
    }
    let share = most_common as f64 / few.len() as f64;
    assert!(share < 0.5, "the most common answer per query word is right in {share} of the prompts");
}

#[test]
fn a_cloze_is_completed_only_by_its_whole_answer() {
    let task = tasks(Split::HeldOut, 600).into_iter().find(|t| t.key.as_str() == "capital:France").unwrap();
    assert_eq!(task.cloze.0, "The capital of France is");
    assert!(task.completes_cloze(" Paris, and the capital of Spain is Madrid."));
    assert!(!task.completes_cloze(" Parisian") && !task.completes_cloze(" Madrid") && !task.completes_cloze(""));
}

#[test]
fn a_follow_up_question_depends_on_the_previous_turn() {
    let tasks = tasks(Split::HeldOut, 600);
    for task in tasks.iter().filter(|t| t.kind == PromptKind::Dialogue) {
        assert_eq!(task.messages.len(), 3);
        assert!(task.messages[2].text().starts_with("And "), "{task:?}");
    }
}
