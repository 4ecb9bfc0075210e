//! Cleaning of corpora: steps that change or remove documents, with counts and reasons.
//!
//! Documents stream through the steps; in memory are hashes, and on disk the texts that wait for the decision about near duplicates.
//! The result depends neither on the number of threads nor on the order in which files are given.

mod characters;
mod decontamination;
mod gopher;
mod language;
mod minhash;
mod near;
mod ngrams;
mod output;
mod pass;
mod recipe;
mod report;
mod stage;
mod store;
mod web;
mod words;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

pub use characters::{Addresses, Unicode};
pub use decontamination::Decontamination;
pub use gopher::{GopherQuality, GopherRepetition};
pub use language::Language;
pub use near::NearDuplicates;
pub use recipe::{CleanRecipe, ExactDuplicates, Step};
pub use report::{CleanReport, Cluster, FileReport, NearReport, Removed, StepReport};
pub use web::{C4, Fineweb};

use crate::documents::{DocumentOptions, document_files, for_each_document};
use crate::{Error, Result};
use near::Clusters;
use pass::{Item, Pass};
use stage::stages;
use store::Store;

/// How a corpus is cleaned.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CleanOptions {
    /// How documents are read.
    pub reading: DocumentOptions,
    /// Evaluation sets in addition to those of the steps `decontamination` of the recipe.
    pub evaluation: Vec<PathBuf>,
    /// Instead of `max_removed` of the steps `near_duplicates` of the recipe.
    pub max_removed: Option<f64>,
}

/// Cleans the documents of files and folders by the steps of a recipe, and writes a new folder `out`: `text/part-00000.jsonl` and so on
/// with the rows `{"text", "source", "row"}`, `excluded.jsonl` with the removed documents, step and reason, and `report.json`. Without
/// `out` nothing is written and `max_removed` is no limit. Calls `on_bytes` with the bytes of text read so far.
///
/// Needs as much space on the disk as the text that comes to a step `near_duplicates`. An error if `out` exists, if no document is
/// found, or if near duplicates are more than `max_removed`.
pub fn clean(
    paths: &[PathBuf],
    recipe: &CleanRecipe,
    out: Option<&Path>,
    options: &CleanOptions,
    on_bytes: &mut dyn FnMut(u64),
) -> Result<CleanReport> {
    if let Some(out) = out.filter(|out| out.exists()) {
        return Err(Error::unusable(out, "already exists; choose another --out"));
    }
    let recipe = with_options(recipe, options)?;
    let stages = stages(&recipe)?;
    let files = document_files(paths)?;
    let work = work_folder(out)?;
    let result = work.path().join("result");
    std::fs::create_dir(&result).map_err(Error::io(&*result))?;
    let mut pass = Pass::new(&recipe, files, out.is_some().then_some(&*result))?;
    let mut before: Option<(Store, Clusters, usize)> = None;
    for (number, stage) in stages.iter().enumerate() {
        pass.begin(stage, work.path(), number)?;
        match before.take() {
            None => {
                let mut bytes = 0;
                let files = pass.files().to_vec();
                let read = for_each_document(&files, &options.reading, &mut |document| {
                    bytes += document.text.len() as u64;
                    on_bytes(bytes);
                    let file = pass.file(&document.file);
                    pass.add(stage, Item { file, row: document.row as u64, text: document.text })
                })?;
                pass.report.read = read;
            }
            Some((store, clusters, step)) => {
                let mut index = 0;
                let mut kept: HashMap<u32, (u32, u64)> =
                    clusters.groups().into_iter().map(|group| (group[0], (0, 0))).collect();
                store.for_each(&mut |item| {
                    let first = clusters.first[index as usize];
                    index += 1;
                    if first != index - 1 {
                        let place = kept.get(&first).copied().unwrap_or_default();
                        return pass.remove_copy(step, &item, place);
                    }
                    if let Some(place) = kept.get_mut(&first) {
                        *place = (item.file, item.row);
                    }
                    pass.add(stage, item)
                })?;
            }
        }
        pass.end_batch(stage)?;
        if let (Some(near), Some(store)) = (&stage.near, pass.take_store()?) {
            let clusters = Clusters::find(&store, near.options)?;
            pass.describe(near.step, &store, &clusters)?;
            let (removed, documents) = (clusters.removed(), store.len());
            if out.is_some() && removed as f64 > near.options.max_removed * documents as f64 {
                return Err(Error::TooManyDuplicates { removed, documents, max: near.options.max_removed });
            }
            before = Some((store, clusters, near.step));
        }
    }
    let report = pass.finish()?;
    if let Some(out) = out {
        crate::files::write_atomic(&result.join("report.json"), |file| {
            serde_json::to_writer_pretty(&mut *file, &report)?;
            file.write_all(b"\n")
        })?;
        std::fs::rename(result, out).map_err(Error::io(out))?;
    }
    Ok(report)
}

/// The recipe with the options that replace some of its keys.
fn with_options(recipe: &CleanRecipe, options: &CleanOptions) -> Result<CleanRecipe> {
    let mut recipe = recipe.clone();
    let mut decontaminates = false;
    for step in &mut recipe.steps {
        match step {
            Step::NearDuplicates(near) => near.max_removed = options.max_removed.unwrap_or(near.max_removed),
            Step::Decontamination(step) => {
                decontaminates = true;
                step.sets.extend(options.evaluation.iter().cloned());
            }
            _ => {}
        }
    }
    match options.evaluation.first() {
        Some(set) if !decontaminates => Err(Error::unusable(
            set,
            "the recipe has no step decontamination that would read this evaluation set; add one",
        )),
        _ => Ok(recipe),
    }
}

/// A temporary folder, in the folder of `out` if there is one, so that it can be renamed.
fn work_folder(out: Option<&Path>) -> Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".clean-");
    let Some(out) = out else {
        let folder = std::env::temp_dir();
        return builder.tempdir_in(&folder).map_err(Error::io(folder));
    };
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
    builder.tempdir_in(parent).map_err(Error::io(parent))
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
