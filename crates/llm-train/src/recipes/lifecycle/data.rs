//! Writes the data files of the pipeline: training data for each stage, and test data.

use std::path::Path;

use candle_core::Device;
use llm_data::{ChatMessage, Conversation, NGrams, Ranking, write_jsonl};
use llm_engine::{GenerateOptions, Sampling, TextModel};
use llm_feedback::Annotator;
use llm_synthetic::{Phenomenon, Question, Split, Task, Use, World};
use rand::RngExt;
use serde_json::json;

use super::LifecycleRecipe;
use crate::run::{Event, rng};
use crate::{Error, Result};

/// Writes the texts, conversations, rankings and prompts of the synthetic dataset, and the test sets. The same recipe gives the
/// same bytes.
pub(super) fn write_world(recipe: &LifecycleRecipe, world: &World, dir: &Path) -> Result<()> {
    let count = &recipe.questions;
    for (split, name) in [(Split::Train, "train"), (Split::HeldOut, "held_out")] {
        let texts: Vec<_> = world.corpus(split).into_iter().map(|text| json!({ "text": text })).collect();
        write_jsonl(&dir.join(format!("text-{name}.jsonl")), &texts)?;
    }
    let mut conversations = conversations(&world.tasks(Split::Train, count.tasks));
    conversations.extend(world.crowd(count.crowd));
    conversations.extend(world.dialogues(count.dialogues));
    conversations.extend(world.echoes(count.echoes));
    write_jsonl(&dir.join("instruct-train.jsonl"), &conversations)?;
    let texts: Vec<_> = conversations.iter().flat_map(|c| &c.messages).map(ChatMessage::text).collect();
    let trained = NGrams::of(texts.iter().map(AsRef::as_ref));
    let mut tasks = world.tasks(Split::HeldOut, count.held_out);
    tasks.retain(|task| !task.messages.iter().any(|message| trained.overlap(&message.text())));
    write_jsonl(&dir.join("instruct-held_out.jsonl"), &self::conversations(&tasks))?;
    write_jsonl(&dir.join("tasks-held_out.jsonl"), &tasks)?;

    for (split, purpose, name) in [
        (Split::Train, Use::Rankings, "train"),
        (Split::Train, Use::Validation, "seen_themes"),
        (Split::HeldOut, Use::Validation, "held_out"),
    ] {
        let number = if purpose == Use::Rankings { count.rankings } else { count.held_out };
        let questions = world.questions(split, purpose, number);
        let rankings = questions.iter().enumerate().map(|(i, q)| ranked(&recipe.annotator, q, &format!("{name} {i}")));
        write_jsonl(&dir.join(format!("rankings-{name}.jsonl")), &rankings.collect::<Result<Vec<_>>>()?)?;
    }
    let prompts = world.questions(Split::Train, Use::Prompts, count.prompts);
    let prompts: Vec<_> = prompts.into_iter().map(|q| json!({ "prompt": q.prompt })).collect();
    write_jsonl(&dir.join("prompts.jsonl"), &prompts)?;
    for phenomenon in Phenomenon::ALL {
        let probes = world.probes(phenomenon, count.probes);
        write_jsonl(&dir.join(format!("probes-{}.jsonl", phenomenon.file_name())), &probes)?;
    }
    Ok(())
}

fn conversations(tasks: &[Task]) -> Vec<Conversation> {
    tasks.iter().map(Task::conversation).collect()
}

/// The annotator's ranking of a question's answers. A different `label` gives a different random draw for the same question.
pub(super) fn ranked(annotator: &Annotator, question: &Question, label: &str) -> Result<Ranking> {
    let utilities: Vec<f64> = question.answers.iter().map(|a| a.utility).collect();
    let texts: Vec<&str> = question.answers.iter().map(|a| a.text.as_str()).collect();
    let order = annotator.rank(label, &utilities, &texts)?;
    let answers = question.answers.iter().map(|a| a.text.clone()).collect();
    Ok(Ranking::strict(question.prompt.clone(), vec![ChatMessage::user(&question.prompt)], answers, &order))
}

/// Writes the student's conversations: tasks and dialogues with their answers, and questions answered by the teacher.
pub(super) fn write_lessons(
    recipe: &LifecycleRecipe,
    world: &World,
    teacher: &Path,
    dir: &Path,
    device: &Device,
    observer: &mut dyn FnMut(Event),
) -> Result<()> {
    let (train, held_out) = (dir.join("lessons-train.jsonl"), dir.join("lessons-held_out.jsonl"));
    if train.exists() && held_out.exists() {
        return Ok(());
    }
    let (model, count) = (TextModel::load(teacher)?.to_device(device)?, &recipe.questions);
    let validation = count.held_out.min(200);
    let mut questions = world.questions(Split::Train, Use::Lessons, count.lessons);
    questions.extend(world.questions(Split::Train, Use::Validation, validation));
    let mut answered = answers(recipe, &model, &questions, observer)?;
    let mut tested = answered.split_off(count.lessons);
    tested.extend(conversations(&world.tasks(Split::HeldOut, validation)));
    write_jsonl(&held_out, &tested)?;
    answered.retain(|lesson| !lesson.messages.iter().any(|message| world.names_held_out_theme(&message.text())));
    answered.extend(conversations(&world.tasks(Split::Train, count.tasks)));
    answered.extend(world.dialogues(count.dialogues));
    write_jsonl(&train, &answered).map_err(Error::from)
}

/// The seed of a batch of the teacher's answers.
fn lesson_seed(recipe: &LifecycleRecipe, batch: u64) -> u64 {
    rng(recipe.distill.seed, 4, batch).random()
}

/// The questions with answers sampled from the teacher; each answer has its own random stream.
fn answers(
    recipe: &LifecycleRecipe,
    teacher: &TextModel,
    questions: &[Question],
    observer: &mut dyn FnMut(Event),
) -> Result<Vec<Conversation>> {
    const BATCH: usize = 64;
    observer(Event::Begin { stage: "teacher", total: questions.len() as u64, done: 0, unit: "answers" });
    let mut answered = Vec::with_capacity(questions.len());
    for (number, chunk) in questions.chunks(BATCH).enumerate() {
        let ids = |q: &Question| teacher.chat_ids(&[ChatMessage::user(&q.prompt)]);
        let prompts = chunk.iter().map(ids).collect::<Result<Vec<_>, _>>()?;
        let seed = lesson_seed(recipe, number as u64);
        let options = GenerateOptions {
            max_new_tokens: recipe.ppo.max_new_tokens,
            stop_ids: Some(teacher.stop_ids()),
            sampling: Sampling { temperature: recipe.ppo.temperature, seed: Some(seed), ..Sampling::default() },
        };
        let replies = teacher.complete_all(&prompts, &options, BATCH, |_| ())?;
        answered.extend(chunk.iter().zip(replies).map(|(question, reply)| {
            Conversation::from(vec![ChatMessage::user(&question.prompt), ChatMessage::assistant(reply.text)])
        }));
        observer(Event::Progress { done: answered.len() as u64, message: "" });
    }
    observer(Event::End);
    Ok(answered)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use llm_model::{Head, Model, ModelConfig};
    use llm_synthetic::WorldConfig;
    use llm_tokenizer::{TrainConfig, train_bpe};

    use super::*;
    use crate::read_recipe;

    /// A teacher that knows nothing draws its tokens from the random streams alone.
    #[test]
    fn the_same_question_has_another_answer_in_every_batch_of_lessons() {
        let config = TrainConfig { vocab_size: 400, min_frequency: 1 };
        let tokenizer = train_bpe(&config, ["the cat sat on the mat."].iter()).unwrap();
        let config = ModelConfig {
            vocab_size: tokenizer.vocab_size(),
            hidden_size: 16,
            intermediate_size: 16,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            initializer_range: 1e-6,
            ..ModelConfig::default()
        };
        let model = Model::init(config, Head::LanguageModel, 1).unwrap().frozen().unwrap();
        let teacher = TextModel { model, tokenizer: tokenizer.with_default_chat_template().unwrap() };
        let mut recipe = LifecycleRecipe::default();
        recipe.ppo.max_new_tokens = 8;
        let world = World::new(WorldConfig { corpus_bytes: 1000, ..WorldConfig::default() });
        let question = world.questions(Split::Train, Use::Lessons, 1).remove(0);
        let questions = vec![question; 130];
        let lessons = answers(&recipe, &teacher, &questions, &mut |_| ()).unwrap();
        let distinct: HashSet<_> = lessons.iter().map(|lesson| lesson.messages[1].text()).collect();
        assert_eq!(distinct.len(), 130);
    }

    #[test]
    fn the_random_streams_of_the_lessons_are_not_those_of_ppos_replies() {
        let recipe: LifecycleRecipe = read_recipe("lifecycle", &[]).unwrap();
        assert_eq!(recipe.distill.seed, recipe.ppo.seed, "with other seeds the streams differ anyway");
        let lessons: HashSet<u64> = (0..1000).map(|batch| lesson_seed(&recipe, batch)).collect();
        let replies: HashSet<u64> = (0..1000).map(|update| rng(recipe.ppo.seed, 2, update).random()).collect();
        assert_eq!(lessons.len(), 1000);
        assert!(lessons.is_disjoint(&replies));
    }

    #[test]
    fn the_token_limit_cuts_no_answer_of_the_world() {
        let recipe: LifecycleRecipe = read_recipe("lifecycle", &[]).unwrap();
        // A smaller corpus gives shorter tokens and so longer answers.
        let world = World::new(WorldConfig { corpus_bytes: 300_000, ..recipe.world });
        let corpus = world.corpus(Split::Train);
        let tokenizer = train_bpe(&recipe.tokenizer, corpus.iter().map(String::as_str)).unwrap();
        let mut texts: Vec<String> =
            world.crowd(500).into_iter().map(|conversation| conversation.messages[1].text().into_owned()).collect();
        for split in [Split::Train, Split::HeldOut] {
            let questions = world.questions(split, Use::Validation, 500);
            texts.extend(questions.into_iter().flat_map(|q| q.answers).map(|answer| answer.text));
        }
        let tokens = |text: &String| tokenizer.encode(text).unwrap().len() + 1; // with the end of the turn
        let longest = texts.iter().max_by_key(|text| tokens(text)).unwrap();
        assert!(tokens(longest) <= recipe.ppo.max_new_tokens, "{} tokens: {longest}", tokens(longest));
    }
}
