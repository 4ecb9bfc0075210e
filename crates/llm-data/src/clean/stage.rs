//! The steps of a recipe, prepared, up to the next step that needs all documents.

use std::mem;

use unicode_normalization::UnicodeNormalization;

use super::characters::{Scrubber, Unicode};
use super::decontamination::Contaminants;
use super::gopher::{GopherQuality, GopherRepetition};
use super::language::Language;
use super::minhash::{MinHash, shingles};
use super::near::NearDuplicates;
use super::ngrams::{hash_text, window_hash};
use super::recipe::{CleanRecipe, Step};
use super::web::{C4, Fineweb};
use crate::{Error, Result};

/// Steps that need one document at a time, then perhaps the search for near duplicates.
pub(super) struct Stage<'a> {
    steps: Vec<(usize, Local<'a>)>,
    pub near: Option<Near<'a>>,
}

/// The search for near duplicates at the end of a stage.
pub(super) struct Near<'a> {
    /// The index of the step in the recipe.
    pub step: usize,
    pub options: &'a NearDuplicates,
    hash: MinHash,
}

/// A step that needs one document at a time.
enum Local<'a> {
    Unicode(&'a Unicode),
    Language(&'a Language),
    GopherRepetition(&'a GopherRepetition),
    GopherQuality(&'a GopherQuality),
    C4(&'a C4),
    Fineweb(&'a Fineweb),
    ExactDuplicates,
    Decontamination(Contaminants),
    Addresses(Scrubber),
}

/// What the steps of a stage do to a document.
pub(super) struct Outcome {
    /// The text after the last step.
    pub text: String,
    /// The steps in their order; the last one may remove the document.
    pub done: Vec<Done>,
    /// The keys of its bands, if near duplicates are searched. None for a text without words.
    pub keys: Vec<u64>,
}

/// What a step does to a document.
pub(super) struct Done {
    /// The index of the step in the recipe.
    pub step: usize,
    pub effect: Effect,
}

pub(super) enum Effect {
    Nothing,
    Changed,
    /// It is removed if an earlier document has this hash.
    Hash(u64),
    Removed {
        reason: String,
        detail: Option<String>,
    },
}

/// The stages of a recipe. Reads the evaluation sets.
pub(super) fn stages(recipe: &CleanRecipe) -> Result<Vec<Stage<'_>>> {
    let (mut stages, mut steps) = (Vec::new(), Vec::new());
    for (index, step) in recipe.steps.iter().enumerate() {
        let local = match step {
            Step::NearDuplicates(options) => {
                let near = Near { step: index, options, hash: MinHash::new(options.bands, options.rows) };
                stages.push(Stage { steps: mem::take(&mut steps), near: Some(near) });
                continue;
            }
            Step::Unicode(step) => Local::Unicode(step),
            Step::Language(step) => Local::Language(step),
            Step::GopherRepetition(step) => Local::GopherRepetition(step),
            Step::GopherQuality(step) => Local::GopherQuality(step),
            Step::C4(step) => Local::C4(step),
            Step::Fineweb(step) => Local::Fineweb(step),
            Step::ExactDuplicates(_) => Local::ExactDuplicates,
            Step::Decontamination(step) => Local::Decontamination(Contaminants::read(step)?),
            Step::Addresses(step) => Local::Addresses(Scrubber::new(step).map_err(Error::Pattern)?),
        };
        steps.push((index, local));
    }
    stages.push(Stage { steps, near: None });
    Ok(stages)
}

impl Stage<'_> {
    /// Number of bands of the signatures of documents.
    pub fn bands(&self) -> usize {
        self.near.as_ref().map_or(0, |near| near.options.bands)
    }

    /// Applies the steps to a document.
    pub fn apply(&self, text: String) -> Outcome {
        let mut outcome = Outcome { text, done: Vec::with_capacity(self.steps.len()), keys: Vec::new() };
        for (step, local) in &self.steps {
            let effect = match local.apply(&outcome.text) {
                Applied::Kept => Effect::Nothing,
                Applied::Changed(text) => {
                    outcome.text = text;
                    Effect::Changed
                }
                Applied::Hash(hash) => Effect::Hash(hash),
                Applied::Removed(reason, detail) => Effect::Removed { reason, detail },
            };
            let removed = matches!(effect, Effect::Removed { .. });
            outcome.done.push(Done { step: *step, effect });
            if removed {
                return outcome;
            }
        }
        if let Some(near) = &self.near {
            let shingles = shingles(&outcome.text, near.options.ngram);
            if !shingles.is_empty() {
                outcome.keys = near.hash.keys(&shingles);
            }
        }
        outcome
    }
}

/// The result of one step.
enum Applied {
    Kept,
    Changed(String),
    Hash(u64),
    Removed(String, Option<String>),
}

impl Local<'_> {
    fn apply(&self, text: &str) -> Applied {
        let changed = |text: Option<String>| match text {
            // A document that becomes empty is no document.
            Some(text) if text.trim().is_empty() => Applied::Removed("empty".to_owned(), None),
            Some(text) => Applied::Changed(text),
            None => Applied::Kept,
        };
        let rule = |broken: Option<&str>| match broken {
            Some(reason) => Applied::Removed(reason.to_owned(), None),
            None => Applied::Kept,
        };
        match self {
            Self::Unicode(step) => changed(step.apply(text)),
            Self::Language(step) => match step.broken_rule(text) {
                Some(reason) => Applied::Removed(reason, None),
                None => Applied::Kept,
            },
            Self::GopherRepetition(step) => rule(step.broken_rule(text)),
            Self::GopherQuality(step) => rule(step.broken_rule(text)),
            Self::C4(step) => match step.kept_lines(text) {
                Ok(kept) => changed((kept != text).then_some(kept)),
                Err(reason) => rule(Some(reason)),
            },
            Self::Fineweb(step) => rule(step.broken_rule(text)),
            Self::ExactDuplicates => Applied::Hash(exact_hash(text)),
            Self::Decontamination(step) => match step.find(text) {
                Some((task, words)) => Applied::Removed(task.to_owned(), Some(words)),
                None => Applied::Kept,
            },
            Self::Addresses(step) => changed(step.apply(text)),
        }
    }
}

/// The hash of a text after NFC, whatever its white space.
fn exact_hash(text: &str) -> u64 {
    let hash = |text: &str| window_hash(text.split_whitespace().map(hash_text));
    match text.is_ascii() || unicode_normalization::is_nfc(text) {
        true => hash(text),
        false => hash(&text.nfc().collect::<String>()),
    }
}
