//! Recipes of cleaning: TOML files with a list of steps.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::characters::{Addresses, Unicode};
use super::decontamination::Decontamination;
use super::gopher::{GopherQuality, GopherRepetition};
use super::language::Language;
use super::near::NearDuplicates;
use super::web::{C4, Fineweb};
use crate::{Error, Result};

/// The steps of cleaning, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CleanRecipe {
    /// The steps: tables `[[steps]]` with the key `name`, and other keys that have defaults.
    pub steps: Vec<Step>,
}

/// A step of cleaning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Step {
    /// Changes characters.
    Unicode(Unicode),
    /// Keeps documents of some languages.
    Language(Language),
    /// Removes documents with repeated lines, paragraphs and n-grams.
    GopherRepetition(GopherRepetition),
    /// Removes documents by their words and lines.
    GopherQuality(GopherQuality),
    /// Removes lines and documents by the rules of C4.
    C4(C4),
    /// Removes documents by the rules of `FineWeb`.
    Fineweb(Fineweb),
    /// Removes copies of an earlier document: the same text after NFC, whatever the white space.
    ExactDuplicates(ExactDuplicates),
    /// Removes near duplicates.
    NearDuplicates(NearDuplicates),
    /// Removes documents with parts of evaluation sets.
    Decontamination(Decontamination),
    /// Replaces e-mail and IP addresses.
    Addresses(Addresses),
}

/// The step has no settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExactDuplicates {}

/// The built-in recipes, by name.
const BUILT_IN: [(&str, &str); 3] = [
    ("basic", include_str!("../../recipes/basic.toml")),
    ("english", include_str!("../../recipes/english.toml")),
    ("fineweb", include_str!("../../recipes/fineweb.toml")),
];

impl CleanRecipe {
    /// Reads a built-in recipe or a TOML file, and checks it.
    pub fn read(name: &str) -> Result<Self> {
        let path = Path::new(name);
        let text = match Self::built_in(name) {
            Some(text) => text.to_owned(),
            None if path.exists() => std::fs::read_to_string(path).map_err(Error::io(path))?,
            None => {
                let names: Vec<&str> = Self::names().collect();
                return Err(Error::unusable(path, format!("is no file and no recipe of {}", names.join(", "))));
            }
        };
        let wrong = |message: String| Error::unusable(path, message);
        let recipe: Self = toml::from_str(&text).map_err(|e| wrong(e.message().to_owned()))?;
        recipe.check().map_err(wrong)?;
        Ok(recipe)
    }

    /// The names of the built-in recipes.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }

    /// The text of a built-in recipe.
    pub fn built_in(name: &str) -> Option<&'static str> {
        BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
    }

    /// What is wrong with a step, if anything.
    fn check(&self) -> Result<(), String> {
        if self.steps.is_empty() {
            return Err("\"steps\" is empty; it must have at least one table [[steps]]".to_owned());
        }
        for (index, step) in self.steps.iter().enumerate() {
            step.check().map_err(|message| format!("steps[{index}], {}: {message}", step.name()))?;
        }
        Ok(())
    }
}

impl Step {
    /// The name in a recipe.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Unicode(_) => "unicode",
            Self::Language(_) => "language",
            Self::GopherRepetition(_) => "gopher_repetition",
            Self::GopherQuality(_) => "gopher_quality",
            Self::C4(_) => "c4",
            Self::Fineweb(_) => "fineweb",
            Self::ExactDuplicates(_) => "exact_duplicates",
            Self::NearDuplicates(_) => "near_duplicates",
            Self::Decontamination(_) => "decontamination",
            Self::Addresses(_) => "addresses",
        }
    }

    fn check(&self) -> Result<(), String> {
        let whole = |key: &str, value: usize, max: usize| match (1..=max).contains(&value) {
            true => Ok(()),
            false => Err(format!("\"{key}\" is {value}; it must be a whole number from 1 to {max}")),
        };
        let share = |key: &str, value: f64| match (0. ..=1.).contains(&value) {
            true => Ok(()),
            false => Err(format!("\"{key}\" is {value}; it must be from 0 to 1")),
        };
        match self {
            Self::NearDuplicates(near) => {
                whole("ngram", near.ngram, 100)?;
                whole("bands", near.bands, 500)?;
                whole("rows", near.rows, 100)?;
                share("min_jaccard", near.min_jaccard)?;
                share("max_removed", near.max_removed)
            }
            Self::Language(language) => {
                share("min_confidence", language.min_confidence)?;
                match language.unknown_code() {
                    Some(code) => {
                        Err(format!("\"languages\" has {code:?}; it must be a code of ISO 639-3 such as \"eng\""))
                    }
                    None => Ok(()),
                }
            }
            Self::Decontamination(options) => whole("ngram", options.ngram, 100),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("my.toml");
        std::fs::write(&path, text).unwrap();
        CleanRecipe::read(&path.to_string_lossy()).unwrap_err().to_string()
    }

    #[test]
    fn built_in_recipes_are_valid_and_have_the_published_values() {
        for name in CleanRecipe::names() {
            CleanRecipe::read(name).unwrap();
        }
        let fineweb = CleanRecipe::read("fineweb").unwrap();
        let names: Vec<&str> = fineweb.steps.iter().map(Step::name).collect();
        let order =
            ["language", "gopher_repetition", "gopher_quality", "c4", "fineweb", "near_duplicates", "addresses"];
        assert_eq!(names, order);
        let near = NearDuplicates { bands: 14, rows: 8, min_jaccard: 0., ..NearDuplicates::default() };
        assert!(fineweb.steps.contains(&Step::NearDuplicates(near)));
        assert!(fineweb.steps.contains(&Step::GopherQuality(GopherQuality::default())));
        assert!(fineweb.steps.contains(&Step::C4(C4 { terminal_punctuation: false, ..C4::default() })));
    }

    #[test]
    fn errors_name_the_file_the_step_and_the_key() {
        for (text, parts) in [
            ("steps = []", ["my.toml", "at least one table"]),
            ("[[steps]]\nname = \"dedup\"", ["unknown variant `dedup`", "near_duplicates"]),
            ("[[steps]]\nname = \"c4\"\nmin_lines = 3", ["unknown field `min_lines`", "min_sentences"]),
            ("[[steps]]\nname = \"near_duplicates\"\nbands = 0", ["steps[0], near_duplicates", "\"bands\" is 0"]),
            ("[[steps]]\nname = \"language\"\nlanguages = [\"english\"]", ["steps[0], language", "\"english\""]),
        ] {
            let message = error(text);
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
        let message = CleanRecipe::read("fine").unwrap_err().to_string();
        assert_eq!(message, "fine: is no file and no recipe of basic, english, fineweb");
    }
}
