//! Files of items and judgements: the formats of other programs, read and written.
//!
//! [`export`] writes UTF-8 with LF, sorted by item and then by the time of the judgement; the same database gives the same bytes.
//! [`import`] reads what [`export`] writes, and a file that was imported into an empty database is exported with the same bytes.

mod arena;
mod argilla;
mod items;
mod kto;
mod kway;
mod labelstudio;
mod names;
mod pairs;
mod rows;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use crate::Result;
use crate::store::{Imported, Store};

pub use items::import_items;

/// The format of a file of judgements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `{"prompt", "chosen", "rejected"}` for each strict pair, of TRL.
    Trl,
    /// `{"id", "prompt", "answers", "ranks", "annotator", "shown"}` for each ranking.
    Kway,
    /// `{"prompt", "completion", "label"}` for each graded answer, of TRL's KTO.
    Kto,
    /// The clean battle records of Chatbot Arena.
    Arena,
    /// Records of Argilla with a ranking question.
    Argilla,
    /// Tasks of Label Studio with a ranker.
    Labelstudio,
}

/// What [`export`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exported {
    /// Records in the file.
    pub records: usize,
    /// What is not in the file, by reason.
    pub left_out: BTreeMap<&'static str, usize>,
}

impl Exported {
    fn leave_out(&mut self, reason: &'static str, count: usize) {
        if count > 0 {
            *self.left_out.entry(reason).or_default() += count;
        }
    }
}

/// The current judgements of a database in a format, and what is left out. The repeats that measure self-agreement are left out.
pub fn export(store: &Store, format: Format) -> Result<(String, Exported)> {
    let mut done = Exported::default();
    let rows = rows::rows(store, &mut done)?;
    let text = match format {
        Format::Trl => pairs::write(&rows, &mut done),
        Format::Kway => kway::write(&rows, &mut done),
        Format::Kto => kto::write(&rows, &mut done),
        Format::Arena => arena::write(&rows, &mut done),
        Format::Argilla => argilla::write(&rows, &mut done),
        Format::Labelstudio => labelstudio::write(&rows, &mut done),
    }?;
    Ok((text, done))
}

/// Adds the records of a file to a database, all or none. Records that were imported before are not added again. `annotator` is the
/// name of the annotator where the format has none.
pub fn import(store: &Store, path: impl AsRef<Path>, format: Format, annotator: &str) -> Result<Imported> {
    let path = path.as_ref();
    let mut batch = rows::Batch::new(store, path)?;
    match format {
        Format::Trl => pairs::read(&mut batch, annotator),
        Format::Kway => kway::read(&mut batch),
        Format::Kto => kto::read(&mut batch, annotator),
        Format::Arena => arena::read(&mut batch),
        Format::Argilla => argilla::read(&mut batch),
        Format::Labelstudio => labelstudio::read(&mut batch),
    }?;
    batch.store()
}
