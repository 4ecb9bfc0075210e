//! The topics of questions.

use serde::{Deserialize, Serialize};

/// The topic of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topic {
    /// Countries and their capitals.
    Capital,
    /// Colours of things.
    Colour,
    /// Opposites.
    Opposite,
    /// English words in French.
    French,
    /// Animals, fruits, tools, garments.
    Category,
    /// A word in the plural.
    Plural,
    /// One sum.
    Sum,
    /// An arithmetic word problem.
    Story,
    /// The summary of a short text.
    Summary,
    /// Sentiment: happy or sad.
    Feeling,
}
