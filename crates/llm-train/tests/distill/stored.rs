//! Stored log-probabilities of the teacher.

use std::fs;

use llm_data::{ChatMessage, Conversation, write_jsonl};
use llm_train::recipes::{DistillInputs, DistillRecipe, TeacherLogitsInputs, TeacherLogitsRecipe, teacher_logits};
use llm_train::run::RunOptions;

use super::common::{contents, quietly};
use super::{Fixture, interrupted, metrics};

fn logits_inputs(fixture: &Fixture) -> TeacherLogitsInputs {
    let DistillInputs { teacher, data, validation, .. } = fixture.inputs();
    TeacherLogitsInputs { teacher, data, validation }
}

fn write(fixture: &Fixture, out: &str, top_k: usize, bits: u32) {
    let recipe = TeacherLogitsRecipe { top_k, bits, ..TeacherLogitsRecipe::default() };
    quietly(|options| teacher_logits(&recipe, &logits_inputs(fixture), fixture.path(out), options)).unwrap();
}

#[test]
fn all_tokens_give_the_loss_of_the_teacher_and_few_tokens_less() {
    let fixture = Fixture::new();
    let vocab = llm_tokenizer::Tokenizer::load(fixture.path("teacher")).unwrap().vocab_size();
    write(&fixture, "all", vocab, 32);
    write(&fixture, "five", 5, 16);
    let inputs = |logits: Option<&str>| DistillInputs {
        teacher_logits: logits.map(|name| fixture.path(name)),
        ..fixture.inputs()
    };
    let recipe = DistillRecipe { eval_every: 2, ..Fixture::recipe() };
    fixture.run(&recipe, &inputs(None), "teacher-runs").unwrap();
    fixture.run(&recipe, &inputs(Some("all")), "of-all").unwrap();
    fixture.run(&recipe, &inputs(Some("five")), "of-five").unwrap();
    let of = |run: &str, name: &str| metrics(&fixture.path(run), name);
    for name in ["loss", "kl_loss", "cross_entropy_loss"] {
        let (whole, all) = (of("teacher-runs", name), of("of-all", name));
        assert_eq!(whole.len(), all.len());
        // The first step is the same up to rounding; later ones differ by what training makes of it.
        assert!((whole[0] - all[0]).abs() < 1e-6, "{name}: {} and {}", whole[0], all[0]);
        assert!(whole.iter().zip(&all).all(|(a, b)| (a - b).abs() < 1e-4), "{name}: {whole:?} and {all:?}");
    }
    assert!(of("of-five", "kl_loss")[0] < of("teacher-runs", "kl_loss")[0] - 1e-3);
    assert!(of("of-all", "eval_kl_stored").len() > 1, "the validation conversations are stored too");
}

/// A change of a run.
type Change<'a> = Box<dyn Fn(&mut DistillRecipe, &mut DistillInputs) + 'a>;

#[test]
fn logits_of_something_else_are_refused_by_name() {
    let fixture = Fixture::new();
    write(&fixture, "logits", 5, 8);
    let run = |change: &dyn Fn(&mut DistillRecipe, &mut DistillInputs)| {
        let (mut recipe, mut inputs) = (Fixture::recipe(), fixture.inputs());
        inputs.teacher_logits = Some(fixture.path("logits"));
        change(&mut recipe, &mut inputs);
        fixture.run(&recipe, &inputs, "none").unwrap_err().to_string()
    };
    let cases: Vec<(Change, &str)> = vec![
        (Box::new(|recipe, _| recipe.temperature = 1.), "temperature is 1; "),
        (Box::new(|recipe, _| recipe.seed = 1), "was written for other conversations"),
        (Box::new(|_, inputs| inputs.teacher = fixture.path("base")), "was written by another teacher"),
        (Box::new(|_, inputs| inputs.teacher = fixture.path("other")), "was written with another tokenizer"),
        (Box::new(|recipe, _| recipe.on_policy = 0.5), "on_policy needs the teacher itself"),
        (Box::new(|recipe, _| recipe.hidden_weight = 0.5), "hidden_weight needs the teacher itself"),
        (Box::new(|_, inputs| inputs.teacher_logits = Some(fixture.path("teacher"))), "is no complete folder"),
    ];
    for (change, expected) in cases {
        let message = run(&*change);
        assert!(message.contains(expected), "{message}");
    }
    let shard = fixture.path("logits").join("shard-00000.bin");
    let mut bytes = fs::read(&shard).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(&shard, bytes).unwrap();
    let message = run(&|_, _| ());
    assert!(message.contains("shard-00000.bin"), "{message}");
    assert!(!fixture.path("none").exists());
}

#[test]
fn an_interrupted_writer_ends_in_the_same_bytes() {
    let fixture = Fixture::new();
    let conversation = |i: usize| {
        Conversation::from(vec![ChatMessage::user(format!("say {i}")), ChatMessage::assistant("one two three")])
    };
    write_jsonl(&fixture.path("data.jsonl"), &(0..600).map(conversation).collect::<Vec<_>>()).unwrap();
    let (recipe, inputs) =
        (TeacherLogitsRecipe { top_k: 3, ..TeacherLogitsRecipe::default() }, logits_inputs(&fixture));
    let work = |out: &str, options: RunOptions| teacher_logits(&recipe, &inputs, fixture.path(out), options);
    quietly(|options| work("whole", options)).unwrap();
    interrupted(256, |options| work("parts", options));
    assert_eq!(contents(&fixture.path("whole")), contents(&fixture.path("parts")));
    let files = llm_files::list_files(fixture.path("whole")).unwrap();
    assert_eq!(files.iter().filter(|file| file.starts_with("shard-")).count(), 3, "{files:?}");
}
