//! Keys of a model that the tokenizer or the teacher sets, and models that do not fit their tokenizer.

use std::path::Path;

use llm_model::{Head, Model, ModelConfig};
use llm_tokenizer::Tokenizer;
use llm_train::Result;
use llm_train::recipes::{DistillInputs, DistillRecipe, PretrainInputs, PretrainRecipe, distill, pretrain};

use super::{FIXTURE, Knobs, Stage, quiet};

fn pretrained(model: ModelConfig, out: &Path) -> Result<()> {
    let recipe = PretrainRecipe { steps: 1, batch_size: 2, seq_len: 8, eval_batches: 1, model, ..Default::default() };
    let (tokenizer, data) = (FIXTURE.path("model.tokenizer"), FIXTURE.path("shards"));
    pretrain(
        &recipe,
        &PretrainInputs { model: None, tokenizer: tokenizer.clone(), data: vec![data.clone()] },
        out,
        quiet(),
    )
    .map(|_| ())
}

fn distilled(student: ModelConfig, out: &Path) -> Result<()> {
    let recipe = DistillRecipe { epochs: 1, batch_size: 8, student, ..DistillRecipe::default() };
    let (teacher, data) = (FIXTURE.path("model"), FIXTURE.path("chats.jsonl"));
    let inputs = DistillInputs { teacher: teacher.clone(), data: vec![data.clone()], ..DistillInputs::default() };
    distill(&recipe, &inputs, out, quiet()).map(|_| ())
}

/// A change of one key of a model.
type Change = fn(&mut ModelConfig);

#[test]
fn a_key_that_the_tokenizer_or_the_teacher_sets_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let ids: [(&str, Change); 4] = [
        ("vocab_size is 77", |model| model.vocab_size = 77),
        ("bos_token_id is 7", |model| model.bos_token_id = Some(7)),
        ("eos_token_id is 7", |model| model.eos_token_id = Some(7)),
        ("pad_token_id is 7", |model| model.pad_token_id = Some(7)),
    ];
    let positions: (&str, Change) = ("max_position_embeddings is 8", |model| model.max_position_embeddings = 8);
    let changed = |change: Change| {
        let mut model = Knobs::default().shape();
        change(&mut model);
        model
    };
    for (named, change) in ids {
        let error = pretrained(changed(change), &out).unwrap_err();
        let expected = format!("model.{named}; the tokenizer sets this key: leave it out");
        assert!(error.is_callers_fault() && error.to_string() == expected, "{error}");
    }
    for (named, change) in ids.into_iter().chain([positions]) {
        let error = distilled(changed(change), &out).unwrap_err();
        let expected = format!("student.{named}; the teacher sets this key: leave it out");
        assert!(error.is_callers_fault() && error.to_string() == expected, "{error}");
    }
    assert!(!out.exists());
}

#[test]
fn a_key_with_the_value_that_the_tokenizer_or_the_teacher_sets_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let teacher = Model::load(FIXTURE.path("model")).unwrap().config().clone();
    let shape = Knobs::default().shape();
    pretrained(ModelConfig { vocab_size: teacher.vocab_size, ..shape.clone() }, &dir.path().join("base")).unwrap();
    let ModelConfig { vocab_size, max_position_embeddings, eos_token_id, .. } = teacher;
    let student = ModelConfig { vocab_size, max_position_embeddings, eos_token_id, ..shape };
    distilled(student, &dir.path().join("student")).unwrap();
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused() {
    let fixture = FIXTURE.copied();
    let tokenizer = Tokenizer::load(fixture.path("model")).unwrap();
    let config = Model::load(fixture.path("model")).unwrap().config().clone();
    let rows = tokenizer.vocab_size() - 1;
    let smaller = ModelConfig { vocab_size: rows, pad_token_id: None, eos_token_id: None, ..config };
    Model::init(smaller, Head::LanguageModel, 1).unwrap().save(fixture.path("model")).unwrap();
    for stage in [Stage::Finetune, Stage::Reward, Stage::Ppo, Stage::Grpo, Stage::Distill] {
        let out = fixture.path("run");
        let error = stage.run(&fixture, &Knobs::default(), &out, quiet()).unwrap_err();
        let expected = format!("the tokenizer has {} tokens, the model's \"vocab_size\" is {rows}", rows + 1);
        assert!(error.is_callers_fault() && error.to_string().contains(&expected), "{stage:?}: {error}");
        assert!(!out.exists(), "{stage:?}");
    }
}
