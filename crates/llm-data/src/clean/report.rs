//! The counts of cleaning.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::recipe::{CleanRecipe, Step};
use crate::documents::ReadReport;

/// What the steps did. [`Display`](fmt::Display) is a page for the terminal.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CleanReport {
    /// What was read.
    pub read: ReadReport,
    /// Documents that were kept.
    pub documents: u64,
    /// Bytes of their text.
    pub bytes: u64,
    /// The steps, in their order.
    pub steps: Vec<StepReport>,
    /// Documents by file.
    pub files: BTreeMap<String, FileReport>,
}

/// What a step did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct StepReport {
    /// The name of the step in recipes.
    pub name: &'static str,
    /// Documents that came to the step.
    pub documents: u64,
    /// Documents whose text it changed.
    pub changed: u64,
    /// Documents that it removed, by reason; in the step `decontamination` by evaluation set.
    pub removed: BTreeMap<String, Removed>,
    /// The clusters of a step `near_duplicates`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub near: Option<NearReport>,
}

/// Documents that were removed for a reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Their number.
    pub documents: u64,
    /// File and row of the first ones, and details.
    pub first: Vec<String>,
}

/// The clusters of near duplicates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NearReport {
    /// Number of clusters of two documents and more.
    pub clusters: usize,
    /// The largest ones, by size.
    pub largest: Vec<Cluster>,
    /// Size of the largest group of documents that `MinHash` takes for similar, before their true similarity is computed.
    pub largest_candidates: usize,
    /// How often a document was not compared with all candidates, because they were too many.
    pub not_compared: u64,
}

/// A cluster of near duplicates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Cluster {
    /// Number of its documents.
    pub documents: usize,
    /// File and row of the document that is kept.
    pub kept: String,
    /// Those of the first ones that are removed.
    pub copies: Vec<String>,
    /// The beginning of the text that is kept.
    pub text: String,
}

/// The documents of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// Documents that were kept.
    pub kept: u64,
    /// Documents that were removed.
    pub removed: u64,
}

/// Number of places that are shown for a reason.
const SHOWN: usize = 3;
/// Number of clusters that are shown.
const SHOWN_CLUSTERS: usize = 10;

impl CleanReport {
    pub(super) fn new(recipe: &CleanRecipe) -> Self {
        let step = |step: &Step| StepReport { name: step.name(), ..StepReport::default() };
        Self { steps: recipe.steps.iter().map(step).collect(), ..Self::default() }
    }

    pub(super) fn keep(&mut self, file: &str, bytes: usize) {
        self.documents += 1;
        self.bytes += bytes as u64;
        self.file(file).kept += 1;
    }

    pub(super) fn remove(&mut self, step: usize, reason: &str, detail: Option<&str>, file: &str, place: &str) {
        self.file(file).removed += 1;
        let removed = self.steps[step].removed.entry(reason.to_owned()).or_default();
        removed.documents += 1;
        if removed.first.len() < SHOWN {
            removed.first.push(detail.map_or_else(|| place.to_owned(), |detail| format!("{place} ({detail})")));
        }
    }

    fn file(&mut self, name: &str) -> &mut FileReport {
        self.files.entry(name.to_owned()).or_default()
    }
}

impl StepReport {
    /// Number of documents that the step removed.
    pub fn removed_documents(&self) -> u64 {
        self.removed.values().map(|removed| removed.documents).sum()
    }
}

impl fmt::Display for CleanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "read: {} documents, {} bytes", self.read.documents, self.read.bytes)?;
        for line in self.read.lines() {
            writeln!(f, "  {line}")?;
        }
        for step in &self.steps {
            writeln!(
                f,
                "{}: {} documents, {} changed, {} removed",
                step.name,
                step.documents,
                step.changed,
                step.removed_documents()
            )?;
            for (reason, removed) in &step.removed {
                let more = if removed.documents > removed.first.len() as u64 { "; …" } else { "" };
                writeln!(f, "  {} {reason}: {}{more}", removed.documents, removed.first.join("; "))?;
            }
            if let Some(near) = &step.near {
                near.fmt(f)?;
            }
        }
        let share = 100. * self.documents as f64 / self.read.documents.max(1) as f64;
        writeln!(f, "kept: {} documents ({share:.1} %), {} bytes", self.documents, self.bytes)
    }
}

impl fmt::Display for NearReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  {} clusters; the largest group of candidates has {} documents",
            self.clusters, self.largest_candidates
        )?;
        for cluster in self.largest.iter().take(SHOWN_CLUSTERS) {
            let more = if cluster.documents > cluster.copies.len() + 1 { ", …" } else { "" };
            writeln!(
                f,
                "  {} documents: {} is kept, without {}{more}: {:?}",
                cluster.documents,
                cluster.kept,
                cluster.copies.join(", "),
                cluster.text
            )?;
        }
        if self.not_compared > 0 {
            writeln!(f, "  {} times a document had too many candidates to compare it with all", self.not_compared)?;
        }
        Ok(())
    }
}
