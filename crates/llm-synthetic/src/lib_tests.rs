use std::collections::HashSet;

use llm_data::NGrams;

use super::*;

fn small() -> World {
    World::new(WorldConfig { corpus_bytes: 2_000_000, ..WorldConfig::default() })
}

fn words_of(text: &str) -> Vec<String> {
    text.split(|c: char| !(c.is_alphanumeric() || "+-=".contains(c)))
        .filter(|w| !w.is_empty())
        .map(str::to_lowercase)
        .collect()
}

fn vocabulary<'a>(texts: impl IntoIterator<Item = &'a String>) -> HashSet<String> {
    texts.into_iter().flat_map(|text| words_of(text)).collect()
}

/// All word n-grams of the texts.
fn n_grams(texts: &[String], n: usize) -> HashSet<String> {
    texts.iter().flat_map(|text| words_of(text).windows(n).map(|w| w.join(" ")).collect::<Vec<_>>()).collect()
}

#[test]
fn the_dataset_is_a_function_of_the_seed() {
    let world = |seed| World::new(WorldConfig { seed, corpus_bytes: 20_000 });
    assert_eq!(world(1).corpus(Split::Train), world(1).corpus(Split::Train));
    assert_ne!(world(1).corpus(Split::Train), world(2).corpus(Split::Train));
    assert_eq!(world(1).tasks(Split::HeldOut, 20), world(1).tasks(Split::HeldOut, 20));
    let keys = |seed| world(seed).tasks(Split::HeldOut, 200).into_iter().map(|t| t.key).collect::<HashSet<_>>();
    assert_ne!(keys(1), keys(2), "the held-out split depends on the seed");
}

#[test]
fn held_out_frames_and_sentences_do_not_occur_in_the_training_corpus_but_their_words_do() {
    let world = small();
    let (train, held_out) = (world.corpus(Split::Train), world.corpus(Split::HeldOut));
    let seen = vocabulary(&train);
    let unseen: Vec<String> = vocabulary(&held_out).difference(&seen).cloned().collect();
    assert!(unseen.is_empty(), "words only in the held-out corpus: {unseen:?}");
    assert!(seen.len() < 1600, "the vocabulary is too large: {} words", seen.len());
    let text = train.join("\n");
    for phenomenon in Phenomenon::ALL {
        for probe in world.probes(phenomenon, 200) {
            assert!(!text.contains(&probe.sentence()), "{}", probe.sentence());
            assert!(!text.contains(&format!("{}{}", probe.prefix, probe.bad)), "a wrong sentence occurs");
        }
    }
}

/// All conversations for fine-tuning.
fn fine_tuning(world: &World) -> Vec<Conversation> {
    let mut all: Vec<Conversation> = world.tasks(Split::Train, 9000).iter().map(Task::conversation).collect();
    all.extend(world.crowd(2000));
    all.extend(world.dialogues(1500));
    all.extend(world.echoes(1500));
    all
}

#[test]
fn no_conversation_contains_a_held_out_question_or_answer_and_long_n_grams_are_rare() {
    for seed in [42, 43, 44] {
        let world = World::new(WorldConfig { seed, ..WorldConfig::default() });
        let train = fine_tuning(&world);
        let messages: Vec<String> =
            train.iter().flat_map(|c| c.messages.iter().map(|m| m.text().into_owned())).collect();
        let seen: HashSet<&String> = messages.iter().collect();
        let long = NGrams::of(messages.iter().map(String::as_str));
        let all = messages.join("\n");
        let mut sharing = 0;
        for task in world.tasks(Split::HeldOut, 1200) {
            let question = task.messages.last().unwrap().text().into_owned();
            assert!(!seen.contains(&question), "seed {seed}: {question}");
            // Answers of one word (categories, numbers) occur in both splits; sentences that repeat the question do not.
            for answer in task.answers.iter().filter(|a| a.contains(' ') && task.topic != Topic::Feeling) {
                assert!(!all.contains(answer.as_str()), "seed {seed}: {answer}");
            }
            sharing += usize::from(task.messages.iter().any(|m| long.overlap(&m.text())));
        }
        assert!(sharing < 48, "seed {seed}: {sharing} of 1200 tasks have a long n-gram in common with training");
    }
}

#[test]
fn no_ranking_prompt_or_conversation_contains_a_held_out_theme() {
    const LONG: usize = 13;
    for seed in [42, 43, 44] {
        let world = World::new(WorldConfig { seed, ..WorldConfig::default() });
        let mut train: Vec<String> = fine_tuning(&world)
            .into_iter()
            .flat_map(|c| c.messages.into_iter().map(|m| m.text().into_owned()))
            .collect();
        for purpose in [Use::Rankings, Use::Prompts, Use::Lessons, Use::Validation] {
            for question in world.questions(Split::Train, purpose, 2000) {
                train.push(question.prompt);
                train.extend(question.answers.into_iter().map(|a| a.text));
            }
        }
        let all = train.join("\n");
        let long = n_grams(&train, LONG);
        for question in world.questions(Split::HeldOut, Use::Validation, 600) {
            let goal = question.key.as_str().trim_start_matches("theme:");
            assert!(!all.contains(goal), "seed {seed}: {goal}");
            let mut own = vec![question.prompt.clone()];
            for answer in &question.answers {
                assert!(!all.contains(&answer.text), "seed {seed}: {}", answer.text);
                own.push(answer.text.clone());
            }
            let shared: Vec<String> = n_grams(&own, LONG).intersection(&long).cloned().collect();
            assert!(shared.is_empty(), "seed {seed}: {shared:?}");
        }
    }
}

#[test]
fn the_pre_training_corpus_contains_the_held_out_facts_and_themes() {
    let world = World::new(WorldConfig::default());
    let text = world.corpus(Split::Train).join("\n");
    for task in world.tasks(Split::HeldOut, 1200) {
        if [Topic::Capital, Topic::Colour, Topic::Opposite, Topic::French, Topic::Sum].contains(&task.topic)
            && task.kind != PromptKind::FewShot
        {
            let (before, after) = &task.cloze;
            assert!(text.contains(&format!("{before} {after}")), "{before} {after}");
        }
    }
    for question in world.questions(Split::HeldOut, Use::Validation, 300) {
        assert!(text.contains(question.key.as_str().trim_start_matches("theme:")));
    }
}

#[test]
fn documents_are_short_and_the_corpus_has_the_configured_size() {
    let world = World::new(WorldConfig { corpus_bytes: 300_000, ..WorldConfig::default() });
    let documents = world.corpus(Split::Train);
    assert!(documents.iter().map(|d| d.len() + 1).sum::<usize>() >= 300_000);
    assert!(documents.iter().all(|d| d.split_whitespace().count() < 160));
}

#[test]
fn every_answer_to_a_few_shot_prompt_begins_a_line_somewhere_in_the_training_text() {
    // An answer begins without a space before it, so its tokens differ from those of the same word within a sentence.
    let world = small();
    let corpus = world.corpus(Split::Train);
    let lines: HashSet<&str> =
        corpus.iter().flat_map(|text| text.lines().skip(1)).map(|l| l.trim_end_matches(['.', ':'])).collect();
    let tasks = world.tasks(Split::HeldOut, 2000);
    for task in tasks.iter().filter(|task| task.kind == PromptKind::FewShot) {
        assert!(lines.contains(task.answers[0].as_str()), "{}", task.answers[0]);
    }
}
