//! The language of a document.

use serde::{Deserialize, Serialize};
use whatlang::Lang;

/// Keeps documents of some languages, as the crate `whatlang` detects them by trigrams (Cavnar and Trenkle 1994).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Language {
    /// The languages to keep, by ISO 639-3 code, default `["eng"]`.
    pub languages: Vec<String>,
    /// Least confidence, from 0 to 1, default 0.65, as in `FineWeb`.
    pub min_confidence: f64,
}

impl Default for Language {
    fn default() -> Self {
        Self { languages: vec!["eng".to_owned()], min_confidence: 0.65 }
    }
}

/// The language is detected from the start of a text, of this number of bytes.
const SAMPLE: usize = 8192;

impl Language {
    /// The code that is not known, if any.
    pub(super) fn unknown_code(&self) -> Option<&str> {
        self.languages.iter().map(String::as_str).find(|code| Lang::from_code(*code).is_none())
    }

    /// Why a text is removed, if it is.
    pub(super) fn broken_rule(&self, text: &str) -> Option<String> {
        let sample = &text[..text.floor_char_boundary(SAMPLE)];
        let Some(info) = whatlang::detect(sample) else { return Some("no language".to_owned()) };
        let code = info.lang().code();
        if !self.languages.iter().any(|language| language == code) {
            return Some(format!("language {code}"));
        }
        (info.confidence() < self.min_confidence).then(|| format!("language {code} with low confidence"))
    }
}
