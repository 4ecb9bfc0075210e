use serde::Serialize;
use toml::{Table, Value};

use super::*;
use crate::recipes::{
    BestOfNRecipe, CompareAlignmentRecipe, DistillRecipe, ExpertIterationRecipe, PpoRecipe, TeacherLogitsRecipe,
};

/// All numbers of a recipe by dotted key.
fn numbers(table: &Table, prefix: &str, all: &mut Vec<(String, Value)>) {
    for (key, value) in table {
        let key = format!("{prefix}{key}");
        match value {
            Value::Table(inner) => numbers(inner, &format!("{key}."), all),
            Value::Integer(_) | Value::Float(_) => all.push((key, value.clone())),
            _ => {}
        }
    }
}

/// Replaces each number of `recipe` by several bad values. All bad values of a real number, and two of an integer, must give
/// an error that names the key.
fn every_number_is_checked<R: Recipe>(recipe: &R) {
    let mut all = Vec::new();
    numbers(&Table::try_from(recipe).unwrap(), "", &mut all);
    assert!(all.len() > 5);
    for (key, value) in all {
        let bad: &[&str] = match value {
            Value::Float(_) => &["nan", "inf", "-inf", "-1e300", "1e300"],
            _ => &["-1", "0", "9000000000000000000", "18446744073709551615"],
        };
        let is_refused = |text: &&&str| {
            let sets = [(key.clone(), (**text).to_owned())];
            match crate::recipe::override_recipe::<R>(recipe, &sets) {
                Ok(_) => false,
                Err(error) => {
                    let (message, last) = (error.to_string(), key.rsplit('.').next().unwrap());
                    assert!(message.contains(last) && !message.contains('\n'), "{key}={text}: {message}");
                    true
                }
            }
        };
        let count = bad.iter().filter(is_refused).count();
        let expected = if matches!(value, Value::Float(_)) { bad.len() } else { 2 };
        assert!(count >= expected, "{key}: only {count} of {bad:?} are refused");
    }
}

#[test]
fn every_number_of_every_recipe_is_checked() {
    every_number_is_checked(&PretrainRecipe {
        model: ModelConfig { experts: Some(llm_model::ExpertsConfig::default()), ..ModelConfig::default() },
        ..PretrainRecipe::default()
    });
    every_number_is_checked(&FinetuneRecipe { lora: Some(LoraConfig::default()), ..FinetuneRecipe::default() });
    every_number_is_checked(&RewardRecipe::default());
    every_number_is_checked(&PpoRecipe { kl_target_per_sequence: Some(3.), ..PpoRecipe::default() });
    every_number_is_checked(&BestOfNRecipe::default());
    every_number_is_checked(&ExpertIterationRecipe::default());
    every_number_is_checked(&DistillRecipe::default());
    every_number_is_checked(&TeacherLogitsRecipe::default());
    every_number_is_checked(&LifecycleRecipe::default());
    every_number_is_checked(&CompareAlignmentRecipe::default());
}

#[test]
fn ties_cannot_be_left_out_of_whole_orders() {
    let sets = [("loss", "plackett_luce"), ("ties", "false")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    let message = crate::recipe::override_recipe(&RewardRecipe::default(), &sets).unwrap_err().to_string();
    assert!(message.contains("ties is false; it must be true with loss = \"plackett_luce\""), "{message}");
}

#[test]
fn an_invalid_value_gives_an_error_with_key_and_range() {
    fn message<R: Recipe + Default + Serialize>(key: &str, value: &str) -> String {
        let sets = [(key.to_owned(), value.to_owned())];
        let read = crate::recipe::override_recipe::<R>(&R::default(), &sets);
        read.err().unwrap_or_else(|| panic!("{key}={value} is accepted")).to_string()
    }
    for (key, value) in [
        ("steps", "0"),
        ("optimizer.learning_rate", "nan"),
        ("optimizer.learning_rate", "-1"),
        ("optimizer.beta1", "2"),
        ("optimizer.beta2", "1"),
        ("optimizer.eps", "-1"),
        ("optimizer.weight_decay", "1e9"),
        ("seq_len", "1025"),
        ("batch_size", "0"),
        ("model.initializer_range", "0"),
        ("model.rope_theta", "0"),
        ("model.hidden_size", "7"),
    ] {
        let message = message::<PretrainRecipe>(key, value);
        assert!(message.contains(key.rsplit('.').next().unwrap()), "{message}");
        assert!(message.contains("must be") || message.contains("multiple"), "{message}");
    }
    assert_eq!(
        message::<PpoRecipe>("cliprange", "-0.2"),
        "cliprange is -0.2; it must be a number above 0 and at most 3.4e38"
    );
    for (key, value) in
        [("kl_coef", "-1"), ("gamma", "5"), ("lam", "-1"), ("temperature", "0"), ("num_mini_batches", "65")]
    {
        assert!(message::<PpoRecipe>(key, value).starts_with(&format!("{key} is {value}; it must be ")));
    }
    assert!(message::<DistillRecipe>("alpha", "2").contains("from 0 to 1"));
    assert!(message::<RewardRecipe>("validation_share", "-3").contains("above 0 and below 1"));
    let seed = message::<RewardRecipe>("seed", "18446744073709551615");
    assert!(seed.contains("9223372036854775807"), "{seed}");
    for (key, value) in [
        ("annotator.beta", "nan"),
        ("annotator.beta", "-3"),
        ("questions.held_out", "0"),
        ("ppo.temperature", "0"),
        ("ppo.max_new_tokens", "1024"),
        ("distill.seq_len", "2000"),
        ("tokenizer.vocab_size", "10"),
        ("tokenizer.vocab_size", "99999999999"),
        ("tokenizer.min_frequency", "0"),
        ("pretrain.model.initializer_range", "1e300"),
        ("distill.student.initializer_range", "1e300"),
        ("pretrain.model.vocab_size", "77"),
        ("pretrain.model.eos_token_id", "7"),
        ("distill.student.vocab_size", "77"),
        ("distill.student.max_position_embeddings", "8"),
        ("distill.student.bos_token_id", "7"),
    ] {
        let message = message::<LifecycleRecipe>(key, value);
        assert!(message.contains(key), "{key}: {message}");
    }
    assert!(message::<LifecycleRecipe>("distill.student.num_attention_heads", "3").contains("distill.student"));
}
