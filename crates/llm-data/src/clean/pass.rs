//! Documents on their way through the steps of a stage: in parallel through the steps, in their order to the counts and files.

use std::collections::HashMap;
use std::mem;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::near::Clusters;
use super::output::{Excluded, Kept, Output};
use super::recipe::CleanRecipe;
use super::report::{CleanReport, Cluster, NearReport};
use super::stage::{Effect, Outcome, Stage};
use super::store::{Store, Writer};
use crate::Result;

pub(super) use super::store::Stored as Item;

/// Bytes of text that are in memory at once.
const BATCH_BYTES: usize = 8 << 20;
/// Clusters that are described, and copies of each.
const SHOWN: (usize, usize) = (20, 5);
/// Characters of a text that are shown.
const SHOWN_TEXT: usize = 80;

/// The state of cleaning.
pub(super) struct Pass {
    /// The result so far.
    pub report: CleanReport,
    files: Vec<PathBuf>,
    names: Vec<String>,
    output: Option<Output>,
    store: Option<Writer>,
    /// For each step, the place of the first document with a hash.
    seen: Vec<HashMap<u64, (u32, u64)>>,
    batch: Vec<Item>,
    batch_bytes: usize,
}

impl Pass {
    /// `dir`: the folder of the result, if there is one.
    pub fn new(recipe: &CleanRecipe, files: Vec<PathBuf>, dir: Option<&Path>) -> Result<Self> {
        let names = files.iter().map(|file| file.display().to_string()).collect();
        Ok(Self {
            report: CleanReport::new(recipe),
            files,
            names,
            output: dir.map(Output::create).transpose()?,
            store: None,
            seen: vec![HashMap::new(); recipe.steps.len()],
            batch: Vec::new(),
            batch_bytes: 0,
        })
    }

    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The index of a file.
    pub fn file(&self, path: &Path) -> u32 {
        self.files.binary_search_by(|file| file.as_path().cmp(path)).unwrap_or_default() as u32
    }

    /// Begins a stage; documents that wait for its end are written to `dir`.
    pub fn begin(&mut self, stage: &Stage, dir: &Path, number: usize) -> Result<()> {
        let near = stage.near.is_some();
        self.store = near.then(|| Writer::create(dir, &format!("stage{number}.tmp"), stage.bands())).transpose()?;
        Ok(())
    }

    /// Adds a document to the stage.
    pub fn add(&mut self, stage: &Stage, item: Item) -> Result<()> {
        self.batch_bytes += item.text.len();
        self.batch.push(item);
        if self.batch_bytes >= BATCH_BYTES { self.end_batch(stage) } else { Ok(()) }
    }

    /// Applies the steps to the documents that were added.
    pub fn end_batch(&mut self, stage: &Stage) -> Result<()> {
        self.batch_bytes = 0;
        let applied: Vec<(u32, u64, Outcome)> = mem::take(&mut self.batch)
            .into_par_iter()
            .map(|item| (item.file, item.row, stage.apply(item.text)))
            .collect();
        for (file, row, outcome) in applied {
            self.account(file, row, &outcome)?;
        }
        Ok(())
    }

    fn account(&mut self, file: u32, row: u64, outcome: &Outcome) -> Result<()> {
        for done in &outcome.done {
            let step = &mut self.report.steps[done.step];
            step.documents += 1;
            match &done.effect {
                Effect::Nothing => {}
                Effect::Changed => step.changed += 1,
                Effect::Hash(hash) => {
                    if let Some(&first) = self.seen[done.step].get(hash) {
                        let detail = format!("of {}", self.place(first));
                        return self.remove(done.step, "copy", Some(detail), (file, row), &outcome.text);
                    }
                    self.seen[done.step].insert(*hash, (file, row));
                }
                Effect::Removed { reason, detail } => {
                    return self.remove(done.step, reason, detail.clone(), (file, row), &outcome.text);
                }
            }
        }
        if let Some(store) = &mut self.store {
            return store.add(file, row, &outcome.text, &outcome.keys);
        }
        self.report.keep(&self.names[file as usize], outcome.text.len());
        match &mut self.output {
            Some(output) => output.keep(&Kept { text: &outcome.text, source: &self.names[file as usize], row }),
            None => Ok(()),
        }
    }

    /// Removes a near duplicate of the document at `first`.
    pub fn remove_copy(&mut self, step: usize, item: &Item, first: (u32, u64)) -> Result<()> {
        let detail = format!("of {}", self.place(first));
        self.remove(step, "near copy", Some(detail), (item.file, item.row), &item.text)
    }

    fn remove(
        &mut self,
        step: usize,
        reason: &str,
        detail: Option<String>,
        place: (u32, u64),
        text: &str,
    ) -> Result<()> {
        let shown = self.place(place);
        let source = &self.names[place.0 as usize];
        self.report.remove(step, reason, detail.as_deref(), source, &shown);
        let name = self.report.steps[step].name;
        match &mut self.output {
            Some(output) => {
                output.exclude(&Excluded { step: name, reason, detail: detail.as_deref(), source, row: place.1, text })
            }
            None => Ok(()),
        }
    }

    fn place(&self, (file, row): (u32, u64)) -> String {
        format!("{}:{row}", self.names[file as usize])
    }

    /// The documents that wait for the search of near duplicates.
    pub fn take_store(&mut self) -> Result<Option<Store>> {
        self.store.take().map(Writer::finish).transpose()
    }

    /// Describes the clusters in the report.
    pub fn describe(&mut self, step: usize, store: &Store, clusters: &Clusters) -> Result<()> {
        let groups = clusters.groups();
        let mut largest = Vec::new();
        for members in groups.iter().take(SHOWN.0) {
            let mut places = Vec::new();
            let mut text = String::new();
            for &member in members.iter().take(SHOWN.1 + 1) {
                let item = store.get(member)?;
                places.push(self.place((item.file, item.row)));
                if places.len() == 1 {
                    text =
                        item.text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(SHOWN_TEXT).collect();
                }
            }
            let kept = places.remove(0);
            largest.push(Cluster { documents: members.len(), kept, copies: places, text });
        }
        let step = &mut self.report.steps[step];
        step.documents = store.len() as u64;
        step.near = Some(NearReport {
            clusters: groups.len(),
            largest,
            largest_candidates: clusters.largest_candidates,
            not_compared: clusters.not_compared,
        });
        Ok(())
    }

    /// Ends the files.
    pub fn finish(self) -> Result<CleanReport> {
        if let Some(output) = self.output {
            output.finish()?;
        }
        Ok(self.report)
    }
}
