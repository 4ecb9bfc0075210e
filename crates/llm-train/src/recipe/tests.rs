//! Tests of recipes as files and tables.

use super::*;
use crate::recipes::{BestOfNRecipe, ExpertIterationRecipe};
use crate::recipes::{
    CompareAlignmentRecipe, DistillRecipe, FinetuneRecipe, GrpoRecipe, LifecycleRecipe, PpoRecipe, PretrainRecipe,
    RewardRecipe,
};

fn overrides(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn every_built_in_recipe_is_valid() {
    read::<PretrainRecipe>("pretrain", &[]).unwrap();
    let experts = read::<PretrainRecipe>("experts", &[]).unwrap().model;
    llm_model::Model::init(experts, llm_model::Head::LanguageModel, 1).unwrap();
    read::<FinetuneRecipe>("finetune", &[]).unwrap();
    read::<RewardRecipe>("reward", &[]).unwrap();
    read::<PpoRecipe>("ppo", &[]).unwrap();
    for name in ["grpo", "rloo", "gsm8k"] {
        read::<GrpoRecipe>(name, &[]).unwrap();
    }
    read::<DistillRecipe>("distill", &[]).unwrap();
    read::<LifecycleRecipe>("lifecycle", &[]).unwrap();
}

#[test]
fn a_filter_of_sampling_is_refused_with_the_reason() {
    for key in ["top_p", "top_k", "min_p", "repetition_penalty"] {
        let error = parse::<PpoRecipe>("mine.toml", &format!("{key} = 1"), &[]).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains("probability ratio"), "{error}");
    }
    let error = parse::<PpoRecipe>("mine.toml", "temprature = 1", &[]).unwrap_err().to_string();
    assert!(error.contains("did you mean \"temperature\""), "{error}");
}

/// Each recipe has every key, so that the printed recipe can be copied and changed, and its defaults are written once.
#[test]
fn a_built_in_recipe_has_every_key_of_its_stage() {
    fn check<R: Recipe>() {
        // Tables of other crates have their own defaults.
        const PARTIAL: [&str; 2] = ["model", "student"];
        fn missing(all: &Table, given: &Table) -> Vec<String> {
            let is_missing = |(key, value): (&String, &Value)| match (value, given.get(key)) {
                _ if PARTIAL.contains(&key.as_str()) => Vec::new(),
                (Value::Table(all), Some(Value::Table(given))) => missing(all, given),
                (_, Some(_)) => Vec::new(),
                (_, None) => vec![key.clone()],
            };
            all.iter().flat_map(is_missing).collect()
        }
        let all = to_table(&R::default()).unwrap();
        assert_eq!(missing(&all, &R::defaults()), Vec::<String>::new(), "{}", R::STAGE);
        assert_eq!(to_table(&read::<R>(R::STAGE, &[]).unwrap()).unwrap(), all, "{}", R::STAGE);
    }
    check::<PretrainRecipe>();
    check::<FinetuneRecipe>();
    check::<RewardRecipe>();
    check::<PpoRecipe>();
    check::<GrpoRecipe>();
    check::<BestOfNRecipe>();
    check::<ExpertIterationRecipe>();
    check::<DistillRecipe>();
    check::<LifecycleRecipe>();
    check::<CompareAlignmentRecipe>();
}

#[test]
fn a_file_needs_only_the_keys_that_differ_from_the_built_in_recipe() {
    let recipe: FinetuneRecipe = parse("mine.toml", "epochs = 5\n[optimizer]\nlearning_rate = 1e-3\n", &[]).unwrap();
    let expected = FinetuneRecipe::default();
    let optimizer = crate::optim::OptimizerConfig { learning_rate: 1e-3, ..expected.optimizer.clone() };
    assert_eq!(recipe, FinetuneRecipe { epochs: 5, optimizer, ..expected });
    let recipe: PpoRecipe = parse("mine.toml", "missing_eos = { replace = -1.0 }", &[]).unwrap();
    assert_eq!(recipe.missing_eos, crate::rl::MissingEos::Replace(-1.), "a variant is replaced, not merged");
    let old = [("held_out_share".to_owned(), "0.3".to_owned())];
    for recipe in [parse("old.toml", "held_out_share = 0.3", &[]), parse("old.toml", "", &old)] {
        assert_eq!(recipe.map(|recipe: RewardRecipe| recipe.validation_share).unwrap(), 0.3);
    }
}

#[test]
fn every_key_can_be_overridden_and_the_last_override_wins() {
    let sets =
        overrides(&[("steps", "7"), ("optimizer.schedule", "linear"), ("model.hidden_size", "48"), ("steps", "8")]);
    let recipe: PretrainRecipe = read("pretrain", &sets).unwrap();
    assert_eq!((recipe.steps, recipe.model.hidden_size), (8, 48));
    assert_eq!(recipe.optimizer.schedule, crate::optim::Schedule::Linear);
}

#[test]
fn a_key_of_an_adapter_is_suggested_where_a_stage_has_adapters() {
    for (key, known) in [
        ("r", "lora.r"),
        ("lora_alpha", "lora.lora_alpha"),
        ("target_modules", "lora.target_modules"),
        ("lora.target_module", "lora.target_modules"),
    ] {
        let message = read::<FinetuneRecipe>("finetune", &overrides(&[(key, "1")])).unwrap_err().to_string();
        assert!(message.contains(&format!("did you mean \"{known}\"?")), "{message}");
    }
    let message = read::<PretrainRecipe>("pretrain", &overrides(&[("lora_alpha", "1")])).unwrap_err().to_string();
    assert!(!message.contains("did you mean"), "{message}");
}

#[test]
fn a_wrong_type_is_named_in_words_of_toml() {
    for (key, value, expected) in [
        ("optimizer", "3", "a table"),
        ("optimizer.beta1", "high", "a number"),
        ("sample_prompts", "Once", "a list such as [\"a\", \"b\"]"),
        ("steps", "1.5", "a whole number from 0 to 9223372036854775807"),
    ] {
        let message = read::<PretrainRecipe>("pretrain", &overrides(&[(key, value)])).unwrap_err().to_string();
        let start = format!("pretrain: \"{key}\": invalid type: ");
        assert!(message.starts_with(&start) && message.ends_with(&format!(", expected {expected}")), "{message}");
    }
}

#[test]
fn an_unknown_key_suggests_the_nearest_known_key() {
    let message = |key: &str| read::<PretrainRecipe>("pretrain", &overrides(&[(key, "1")])).unwrap_err().to_string();
    for (key, nearest) in [
        ("optimizer.learning_rat", "optimizer.learning_rate"),
        ("learning_rate", "optimizer.learning_rate"),
        ("lr", "optimizer.learning_rate"),
        ("optimizer.wd", "optimizer.weight_decay"),
    ] {
        let expected = format!("pretrain: unknown key \"{key}\"; did you mean \"{nearest}\"? (keys: ");
        assert!(message(key).starts_with(&expected), "{}", message(key));
    }
    assert!(message("model.no_such_key").contains("unknown key \"model.no_such_key\" (keys: model_type, "));
    assert!(message("stepz").contains("did you mean \"steps\"?"));
    for far in ["rate", "epochs", "temperature"] {
        assert!(!message(far).contains("did you mean"), "{}", message(far));
    }
    let wrong = read::<PretrainRecipe>("pretrain", &overrides(&[("steps", "many")])).unwrap_err().to_string();
    assert!(wrong.contains("\"steps\": invalid type") && !wrong.contains('\n'), "{wrong}");
    let wrong = read::<PretrainRecipe>("pretrain", &overrides(&[("optimizer.beta1", "high")])).unwrap_err().to_string();
    assert!(wrong.contains("pretrain: \"optimizer.beta1\": invalid type"), "{wrong}");
    assert!(read::<PretrainRecipe>("nowhere.toml", &[]).unwrap_err().to_string().contains("no such recipe"));
    let folder = std::env::temp_dir();
    let message = read::<PretrainRecipe>(folder.to_str().unwrap(), &[]).unwrap_err().to_string();
    assert!(!message.contains("no such recipe"), "a path that exists is read: {message}");
}
