//! Students of layers of the teacher, and of another vocabulary size.

use std::path::Path;

use llm_data::{ChatMessage, Conversation, write_jsonl};
use llm_model::{Head, Model, ModelConfig};
use llm_tokenizer::Tokenizer;
use llm_train::optim::OptimizerConfig;
use llm_train::recipes::{DistillInputs, DistillRecipe, DivergenceKind, distill};

use super::common::{contents, everything};
use super::{Fixture, interrupted, metrics};

/// A model with the tokenizer of `dir` and `padding` rows that are no tokens.
fn padded(dir: &Path, padding: usize, seed: u64) {
    let config = Model::load(dir).unwrap().config().clone();
    let config = ModelConfig { vocab_size: config.vocab_size + padding, ..config };
    Model::init(config, Head::LanguageModel, seed).unwrap().save(dir).unwrap();
}

fn run(fixture: &Fixture, recipe: DistillRecipe, student: Option<&str>, out: &str) -> llm_train::Result<()> {
    let inputs = DistillInputs { student: student.map(|name| fixture.path(name)), ..fixture.inputs() };
    fixture.run(&DistillRecipe { text_steps: 0, epochs: 2, batch_size: 8, ..recipe }, &inputs, out)
}

#[test]
fn a_padded_vocabulary_is_cut_to_the_tokens_of_the_tokenizer() {
    let fixture = Fixture::new();
    let tokens = Tokenizer::load(fixture.path("teacher")).unwrap().vocab_size();
    let shape =
        ModelConfig { hidden_size: 16, num_attention_heads: 2, num_key_value_heads: 1, ..ModelConfig::default() };
    let recipe = DistillRecipe { student: ModelConfig { num_hidden_layers: 1, ..shape }, ..DistillRecipe::default() };
    let rows = |name: &str| Model::load(fixture.path(name)).unwrap().config().vocab_size;
    padded(&fixture.path("teacher"), 5, 11);
    padded(&fixture.path("base"), 3, 12);
    run(&fixture, recipe.clone(), None, "fresh").unwrap();
    assert_eq!(rows("fresh"), tokens);
    run(&fixture, recipe.clone(), Some("base"), "grown").unwrap();
    assert_eq!(rows("grown"), tokens + 3);
    assert!(metrics(&fixture.path("grown"), "kl_loss")[0] > 0.);
    // The same number of rows, other tokens.
    let message = run(&fixture, recipe, Some("other"), "none").unwrap_err().to_string();
    assert!(message.contains("other: has another tokenizer than") && message.contains("token "), "{message}");
    assert!(!fixture.path("none").exists());
}

#[test]
fn a_student_of_the_teachers_layers_starts_closer_to_it() {
    let fixture = Fixture::new();
    let shape = Model::load(fixture.path("teacher")).unwrap().config().clone();
    let recipe = |student_layers| DistillRecipe {
        student_layers,
        student: ModelConfig { num_hidden_layers: 1, ..shape.clone() },
        ..DistillRecipe::default()
    };
    run(&fixture, recipe(0), None, "fresh").unwrap();
    run(&fixture, recipe(1), None, "half").unwrap();
    run(&fixture, recipe(2), None, "same").unwrap();
    let first = |name: &str| metrics(&fixture.path(name), "kl_loss")[0];
    assert!(first("same").abs() < 1e-5, "all layers are the teacher: {}", first("same"));
    assert!(first("half") > 1e-3 && first("half") < first("fresh"), "{} and {}", first("half"), first("fresh"));
    assert_eq!(Model::load(fixture.path("half")).unwrap().config().num_hidden_layers, 1);
    let message = run(&fixture, recipe(3), None, "none").unwrap_err().to_string();
    assert!(message.contains("student_layers is 3; the teacher has 2 layers"), "{message}");
    let message = run(&fixture, recipe(1), Some("base"), "none").unwrap_err().to_string();
    assert!(message.contains("leave out --student"), "{message}");
    assert!(!fixture.path("none").exists());
}

/// A student of the teacher's architecture, few conversations: each divergence ends at the teacher (L8). The teacher's files stay as they
/// are (M6).
#[test]
fn a_student_of_the_teachers_architecture_becomes_the_teacher() {
    let fixture = Fixture::new();
    let before = everything(&fixture.path("teacher"));
    let ask = |i: usize| Conversation::from(vec![ChatMessage::user(["two", "six"][i]), ChatMessage::assistant("one")]);
    write_jsonl(&fixture.path("two.jsonl"), &[ask(0), ask(1)]).unwrap();
    let inputs = DistillInputs {
        data: vec![fixture.path("two.jsonl")],
        validation: Some(fixture.path("data.jsonl")),
        ..fixture.inputs()
    };
    for divergence in [DivergenceKind::Forward, DivergenceKind::Reverse, DivergenceKind::Jsd] {
        let recipe = DistillRecipe {
            alpha: 1.,
            temperature: 1.,
            divergence,
            beta: 0.3,
            epochs: 400,
            batch_size: 2,
            eval_batches: 1,
            student: Model::load(fixture.path("teacher")).unwrap().config().clone(),
            optimizer: OptimizerConfig {
                learning_rate: 2e-2,
                warmup_steps: 5,
                min_learning_rate_ratio: 0.02,
                weight_decay: 0.,
                ..OptimizerConfig::default()
            },
            ..Fixture::recipe()
        };
        let out = format!("{divergence:?}");
        fixture.run(&recipe, &inputs, &out).unwrap();
        let name = if divergence == DivergenceKind::Jsd { "jsd_loss" } else { "kl_loss" };
        let losses = metrics(&fixture.path(&out), name);
        assert!(
            losses[0] > 0.02 && losses[losses.len() - 1] < 1e-3,
            "{out}: {} to {}",
            losses[0],
            losses[losses.len() - 1]
        );
    }
    assert_eq!(before, everything(&fixture.path("teacher")));
}

/// The projections are trained with the student, and no file of the result has them. An interrupted run ends in the same bytes.
#[test]
fn hidden_states_are_compared_after_a_projection_that_the_student_does_not_keep() {
    let fixture = Fixture::new();
    let recipe = DistillRecipe {
        hidden_weight: 1.,
        hidden_layers: vec![[0, 1]],
        epochs: 8,
        save_every: 3,
        optimizer: OptimizerConfig { learning_rate: 1e-2, warmup_steps: 0, ..OptimizerConfig::default() },
        student: ModelConfig { hidden_size: 8, ..Fixture::recipe().student },
        ..Fixture::recipe()
    };
    fixture.run(&recipe, &fixture.inputs(), "student").unwrap();
    let losses = metrics(&fixture.path("student"), "hidden_loss");
    assert!(losses[losses.len() - 1] < 0.7 * losses[0], "{losses:?}");
    let student = Model::load(fixture.path("student")).unwrap();
    assert!(student.params().tensors().keys().all(|name| !name.contains("projection")));
    let files = llm_files::list_files(fixture.path("student")).unwrap();
    assert!(files.iter().all(|file| !file.contains("auxiliary") || file.starts_with("checkpoints/")), "{files:?}");
    let inputs = fixture.inputs();
    interrupted(5, |options| distill(&recipe, &inputs, fixture.path("again"), options));
    assert_eq!(contents(&fixture.path("student")), contents(&fixture.path("again")));
    let wrong = DistillRecipe { alpha: 0., ..recipe };
    let message = fixture.run(&wrong, &fixture.inputs(), "none").unwrap_err().to_string();
    assert_eq!(message, "hidden_weight is 1; it must be 0 if alpha is 0, because no teacher runs");
}
