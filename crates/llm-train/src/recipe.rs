//! Recipes: TOML files that hold every number of a run.
//!
//! A recipe mirrors the config struct of its stage. Missing keys have their defaults, unknown keys are errors that name
//! the nearest known one, and every key can be overridden (`optimizer.learning_rate=0.001`).

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::{Error, Result};

/// The numbers of a stage: what its TOML file holds.
pub trait Recipe: Serialize + DeserializeOwned {
    /// The command that runs the stage.
    const STAGE: &'static str;

    /// Checks every number; `table` (empty, or with a dot at its end) comes before the key in an error.
    fn check(&self, table: &str) -> Result<()>;

    /// The same for a recipe by itself. An error names the key, its value and what is allowed.
    fn validate(&self) -> Result<()> {
        self.check("")
    }

    /// Whether the run in the folder `run` may go on with another value of this key than it began with.
    fn may_change(key: &str, _run: &Path) -> bool {
        CHANGEABLE.contains(&key)
    }
}

/// The keys that a run may change when it is resumed.
pub(crate) const CHANGEABLE: [&str; 8] = [
    "steps",
    "epochs",
    "updates",
    "eval_every",
    "eval_batches",
    "save_every",
    "optimizer.learning_rate",
    "value_optimizer.learning_rate",
];

/// The recipes that ship with the program, by name.
const BUILT_IN: [(&str, &str); 7] = [
    ("pretrain", include_str!("../recipes/pretrain.toml")),
    ("experts", include_str!("../recipes/experts.toml")),
    ("finetune", include_str!("../recipes/finetune.toml")),
    ("reward", include_str!("../recipes/reward.toml")),
    ("ppo", include_str!("../recipes/ppo.toml")),
    ("distill", include_str!("../recipes/distill.toml")),
    ("lifecycle", include_str!("../recipes/lifecycle.toml")),
];

/// Reads the recipe `name`: one that ships with the program or a TOML file, with `overrides` (`key`, `value`) applied.
///
/// The `recipe.toml` of an earlier run can be read as well: what it says of that run's inputs is left out.
pub fn read<R: Recipe>(name: &str, overrides: &[(String, String)]) -> Result<R> {
    let text = match BUILT_IN.iter().find(|(known, _)| *known == name) {
        Some((_, text)) => (*text).to_owned(),
        None => {
            let path = Path::new(name);
            if !path.exists() {
                let known = BUILT_IN.map(|(known, _)| known).join(", ");
                return Err(Error::Input(format!("{name}: no such recipe; give a TOML file or one of {known}")));
            }
            std::fs::read_to_string(path).map_err(Error::io(path))?
        }
    };
    parse(name, &text, overrides)
}

/// The recipe of a text, checked; `origin` is named in errors.
pub(crate) fn parse<R: Recipe>(origin: &str, text: &str, overrides: &[(String, String)]) -> Result<R> {
    let syntax = |e: toml::de::Error| Error::Input(format!("{origin}: {}", one_line(&e)));
    let mut table: Table = text.parse().map_err(syntax)?;
    // What a run wrote of itself.
    table.remove("inputs");
    table.remove("run");
    for (key, text) in overrides {
        set(&mut table, key, value(key, text)?)?;
    }
    let recipe: R = Value::Table(table)
        .try_into()
        .map_err(|e: toml::de::Error| Error::Input(format!("{origin}: {}", named(&e))))?;
    recipe.validate()?;
    Ok(recipe)
}

/// A TOML value, or else a text: `--set optimizer.schedule=linear` needs no quotes.
fn value(key: &str, text: &str) -> Result<Value> {
    if text.parse::<i64>().is_err() && text.parse::<i128>().is_ok() {
        return Err(Error::Input(format!("{key} is {text}; it must be a whole number from 0 to {}", i64::MAX)));
    }
    let value = format!("v = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("v"));
    Ok(value.unwrap_or_else(|| Value::String(text.to_owned())))
}

fn set(table: &mut Table, key: &str, value: Value) -> Result<()> {
    let (mut table, mut rest) = (table, key);
    while let Some((head, tail)) = rest.split_once('.') {
        let entry = table.entry(head).or_insert_with(|| Value::Table(Table::new()));
        table = entry.as_table_mut().ok_or_else(|| Error::Input(format!("--set {key}: \"{head}\" is not a table")))?;
        rest = tail;
    }
    table.insert(rest.to_owned(), value);
    Ok(())
}

fn one_line(error: &toml::de::Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The message, with the nearest known key if an unknown one was met.
fn named(error: &toml::de::Error) -> String {
    let quoted: Vec<&str> = error.message().split('`').skip(1).step_by(2).collect();
    if !error.message().contains("unknown field") || quoted.len() < 2 {
        let counted = format!("expected a whole number from 0 to {}", i64::MAX);
        return one_line(error).replace("expected u64", &counted).replace("expected usize", &counted);
    }
    let nearest = quoted[1..].iter().min_by_key(|known| strsim::damerau_levenshtein(quoted[0], known));
    let nearest = nearest.copied().unwrap_or_default();
    let whole = error.to_string();
    let table = whole.rsplit_once("in `").map_or("", |(_, table)| table.trim_end().trim_end_matches('`'));
    let key = if table.is_empty() { quoted[0].to_owned() } else { format!("{table}.{}", quoted[0]) };
    format!("unknown key \"{key}\"; did you mean \"{nearest}\"? (keys: {})", quoted[1..].join(", "))
}

/// The recipe as a table.
pub(crate) fn to_table<R: Serialize>(recipe: &R) -> Result<Table> {
    Table::try_from(recipe).map_err(|e| Error::Input(format!("the recipe cannot be written as TOML: {e}")))
}

#[cfg(test)]
pub(crate) fn override_recipe<R: Recipe>(recipe: &R, overrides: &[(String, String)]) -> Result<R> {
    parse("test", &to_table(recipe)?.to_string(), overrides)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipes::{DistillRecipe, FinetuneRecipe, LifecycleRecipe, PpoRecipe, PretrainRecipe, RewardRecipe};

    fn overrides(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn every_recipe_that_ships_is_read() {
        read::<PretrainRecipe>("pretrain", &[]).unwrap();
        let experts = read::<PretrainRecipe>("experts", &[]).unwrap().model;
        llm_model::Model::init(experts, llm_model::Head::LanguageModel, 1).unwrap();
        read::<FinetuneRecipe>("finetune", &[]).unwrap();
        read::<RewardRecipe>("reward", &[]).unwrap();
        read::<PpoRecipe>("ppo", &[]).unwrap();
        read::<DistillRecipe>("distill", &[]).unwrap();
        read::<LifecycleRecipe>("lifecycle", &[]).unwrap();
    }

    #[test]
    fn every_key_can_be_overridden_and_the_last_one_wins() {
        let sets =
            overrides(&[("steps", "7"), ("optimizer.schedule", "linear"), ("model.hidden_size", "48"), ("steps", "8")]);
        let recipe: PretrainRecipe = read("pretrain", &sets).unwrap();
        assert_eq!((recipe.steps, recipe.model.hidden_size), (8, 48));
        assert_eq!(recipe.optimizer.schedule, crate::optim::Schedule::Linear);
    }

    #[test]
    fn an_unknown_key_names_the_nearest_known_one() {
        let message =
            |key: &str| read::<PretrainRecipe>("pretrain", &overrides(&[(key, "1")])).unwrap_err().to_string();
        assert!(message("optimizer.learning_rat").contains("did you mean \"learning_rate\""));
        assert!(message("stepz").contains("did you mean \"steps\""));
        let wrong = read::<PretrainRecipe>("pretrain", &overrides(&[("steps", "many")])).unwrap_err().to_string();
        assert!(wrong.contains("steps") && !wrong.contains('\n'), "{wrong}");
        assert!(read::<PretrainRecipe>("nowhere.toml", &[]).unwrap_err().to_string().contains("no such recipe"));
    }
}
