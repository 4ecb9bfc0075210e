//! Replies of the student and of the teacher (L9).

use llm_data::{ChatMessage, Conversation, write_jsonl};
use llm_engine::{GenerateOptions, Sampling, generate};
use llm_model::{Head, Model};
use llm_tokenizer::Tokenizer;
use llm_train::examples::{Example, answer_loss};
use llm_train::recipes::{DistillRecipe, distill};
use llm_train::rows::read_examples;

use super::common::contents;
use super::{Fixture, interrupted, metrics};

/// The length of each batch of replies shows that the student generated it; the cross-entropy of its own tokens is no loss.
#[test]
fn lambda_is_the_share_of_batches_that_the_student_answers() {
    let fixture = Fixture::new();
    for (out, on_policy) in [("never", 0.), ("half", 0.5), ("always", 1.)] {
        let recipe = DistillRecipe { on_policy, epochs: 4, ..Fixture::recipe() };
        fixture.run(&recipe, &fixture.inputs(), out).unwrap();
    }
    let number = |out: &str, key: &str| metrics(&fixture.path(out), key).len();
    let steps = number("never", "loss");
    assert_eq!((steps, number("never", "generated_tokens"), number("never", "on_policy")), (20, 0, 0));
    assert_eq!((number("always", "generated_tokens"), number("always", "cross_entropy_loss")), (steps, 0));
    let chosen = metrics(&fixture.path("half"), "on_policy");
    let generated = chosen.iter().filter(|&&chosen| chosen == 1.).count();
    assert_eq!((chosen.len(), number("half", "generated_tokens")), (steps, generated));
    assert_eq!(number("half", "cross_entropy_loss"), steps - generated);
    assert!(generated > 2 && generated < 18, "{generated}");
    // Only the tokens of replies are trained: at most 6 for each of 8 conversations.
    let tokens = metrics(&fixture.path("always"), "generated_tokens");
    assert!(tokens.iter().all(|&tokens| (1. ..=48.).contains(&tokens)), "{tokens:?}");
    // loss = alpha T² KL.
    let (loss, kl) = (metrics(&fixture.path("always"), "loss"), metrics(&fixture.path("always"), "kl_loss"));
    assert!((loss[0] - 0.9 * kl[0]).abs() < 1e-5 * loss[0], "{} and {}", loss[0], kl[0]);
}

#[test]
fn an_interrupted_on_policy_run_ends_in_the_same_bytes() {
    let fixture = Fixture::new();
    let recipe = DistillRecipe { on_policy: 0.5, epochs: 3, save_every: 4, ..Fixture::recipe() };
    let inputs = fixture.inputs();
    fixture.run(&recipe, &inputs, "whole").unwrap();
    interrupted(6, |options| distill(&recipe, &inputs, fixture.path("parts"), options));
    assert_eq!(contents(&fixture.path("whole")), contents(&fixture.path("parts")));
    // Another seed generates other replies.
    fixture.run(&DistillRecipe { seed: 7, ..recipe }, &inputs, "seven").unwrap();
    assert_ne!(metrics(&fixture.path("whole"), "loss"), metrics(&fixture.path("seven"), "loss"));
}

/// Sequence-level distillation without the teacher's distribution is fine-tuning on the teacher's answers, generated here one by one.
#[test]
fn sequence_level_is_training_on_the_teachers_answers() {
    let fixture = Fixture::new();
    let recipe = DistillRecipe {
        alpha: 0.,
        sequence_level: true,
        batch_size: 40,
        epochs: 1,
        eval_every: 1,
        ..Fixture::recipe()
    };
    let (teacher, tokenizer) = (fixture.path("teacher"), Tokenizer::load(fixture.path("teacher")).unwrap());
    let mut inputs = fixture.inputs();
    // All conversations of the data are in the first batch.
    let ask = |i: usize| vec![ChatMessage::user(format!("ask {i}")), ChatMessage::assistant("three")];
    let asked: Vec<_> = (0..3).map(|i| Conversation::from(ask(i))).collect();
    write_jsonl(&fixture.path("validation.jsonl"), &asked).unwrap();
    inputs.validation = Some(fixture.path("validation.jsonl"));
    fixture.run(&recipe, &inputs, "student").unwrap();
    let mut model = Model::load(&teacher).unwrap();
    model.set_end_of_turn(tokenizer.chat_format().unwrap().end_of_turn);
    let sampling = Sampling { temperature: 0., ..Sampling::default() };
    let options = GenerateOptions { max_new_tokens: recipe.max_new_tokens, sampling, ..GenerateOptions::default() };
    let answered: Vec<Example> = read_examples(&fixture.path("data.jsonl"), &tokenizer, 512)
        .unwrap()
        .iter()
        .map(|example| {
            let prompt = example.loss_mask.iter().position(|&trained| trained).unwrap();
            let ids = &example.ids[..prompt];
            let reply = generate(&model, &[ids.to_vec()], &options, |_, _| true).unwrap().remove(0);
            let loss_mask = (0..prompt + reply.len()).map(|i| i >= prompt).collect();
            Example { ids: [ids, &reply].concat(), loss_mask }
        })
        .collect();
    let mut config = recipe.student.clone();
    let of_teacher = model.config();
    config.vocab_size = tokenizer.vocab_size();
    config.max_position_embeddings = of_teacher.max_position_embeddings;
    (config.bos_token_id, config.eos_token_id) = (of_teacher.bos_token_id, of_teacher.eos_token_id);
    config.pad_token_id = of_teacher.pad_token_id;
    let student = Model::init(config, Head::LanguageModel, recipe.seed).unwrap();
    let expected = answer_loss(&student, &answered, 40, 0).unwrap();
    let loss = metrics(&fixture.path("student"), "loss")[0];
    assert!((loss - expected).abs() < 1e-5, "{loss} is not {expected}");
    // Negative control: the answers of the data.
    fixture.run(&DistillRecipe { sequence_level: false, ..recipe }, &inputs, "data").unwrap();
    assert!((metrics(&fixture.path("data"), "loss")[0] - expected).abs() > 1e-3);
}
