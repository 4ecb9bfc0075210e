//! Models of the Hugging Face hub in the options of both programs, and the progress of transfers.

use std::path::PathBuf;

use clap::Args;
use llm_hub::{Event, Hub, Wanted};

use crate::{Failure, Progress};

/// The option `--offline`.
#[derive(Debug, Clone, Copy, Default, Args)]
#[allow(clippy::doc_markdown, reason = "help texts have no backticks")]
pub struct HubOption {
    /// Fetch nothing from the Hugging Face hub: a name such as org/model must be in its cache; the same as HF_HUB_OFFLINE=1
    #[arg(long)]
    offline: bool,
}

impl HubOption {
    /// Replaces `org/name[@revision]` by the folder in the cache, and fetches what is missing, with a progress bar. Paths that exist,
    /// and all other paths, stay as they are.
    pub fn resolve(self, path: &mut PathBuf, wanted: Wanted) -> Result<(), Failure> {
        let mut hub = Hub::from_env();
        hub.offline |= self.offline;
        let mut shown: Option<(String, TransferProgress)> = None;
        let mut observe = |file: &str, event: Event| {
            if shown.as_ref().is_none_or(|(name, _)| name != file) {
                if let Some((_, progress)) = shown.take() {
                    progress.finish();
                }
                shown = Some((file.to_owned(), TransferProgress::new(file)));
            }
            if let Some((_, progress)) = &mut shown {
                progress.show(event);
            }
        };
        let folder = hub.resolve(path, wanted, &mut observe);
        if let Some((_, progress)) = shown {
            progress.finish();
        }
        let folder = folder.map_err(|error| Failure::of(&error, error.is_callers_fault()))?;
        if folder != *path {
            tracing::info!("{}: {}", path.display(), folder.display());
        }
        *path = folder;
        Ok(())
    }
}

/// The progress bar of a transfer; failed tries are logged.
#[derive(Debug)]
pub struct TransferProgress {
    title: String,
    bar: Option<Progress>,
}

impl TransferProgress {
    /// A transfer called `title`. The bar appears when its length is known.
    pub fn new(title: &str) -> Self {
        Self { title: title.to_owned(), bar: None }
    }

    /// Shows an event.
    pub fn show(&mut self, event: Event) {
        match event {
            Event::Bytes { done, total } => {
                if let (None, Some(total)) = (&self.bar, total) {
                    self.bar = Some(Progress::new(&self.title, total / 1000, "kB", done / 1000));
                }
                if let Some(bar) = &mut self.bar {
                    bar.update(done / 1000, "");
                }
            }
            Event::Wait { reason, wait } => tracing::warn!("{}: {reason}; goes on in {wait:.1?}", self.title),
        }
    }

    /// Removes the bar.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish();
        }
    }
}
