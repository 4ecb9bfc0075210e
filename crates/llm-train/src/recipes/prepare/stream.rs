//! Documents of text and token files in batches. The next batch is read by another thread while one is tokenized.

use std::io::{Error as IoError, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use llm_data::{DocumentOptions, ReadReport, for_each_document, for_each_token_document, is_token_file};
use llm_tokenizer::Tokenizer;

use crate::{Error, Result};

/// Bytes of a batch.
const BATCH_BYTES: usize = 8 << 20;

/// A document of a text file, or of a token file.
#[derive(Debug)]
pub(super) struct Item {
    /// The text; of a token file empty until it is decoded.
    pub text: String,
    /// The tokens of a document of a token file, without its separator.
    pub ids: Option<Vec<u32>>,
    /// The file.
    pub file: Arc<Path>,
}

/// How files are read.
pub(super) struct Reader<'a> {
    pub options: &'a DocumentOptions,
    pub tokenizer: &'a Tokenizer,
}

impl Reader<'_> {
    /// Calls `each` with the documents of all files, in their order, in batches. Logs what was left out.
    pub fn for_each_batch(&self, paths: &[PathBuf], each: &mut dyn FnMut(Vec<Item>) -> Result<()>) -> Result<()> {
        std::thread::scope(|scope| {
            let (sender, batches) = sync_channel(1);
            let reader = scope.spawn(move || self.read(paths, sender));
            // After an error here the reader cannot send, and ends.
            batches.into_iter().try_for_each(each)?;
            let read = reader.join().map_err(|_| Error::Internal("the thread that reads files ended".to_owned()))?;
            for line in read?.iter().flat_map(ReadReport::lines) {
                tracing::warn!("{line}");
            }
            Ok(())
        })
    }

    fn read(&self, paths: &[PathBuf], sender: SyncSender<Vec<Item>>) -> Result<Vec<ReadReport>> {
        let (mut batch, mut bytes, mut reports) = (Vec::new(), 0, Vec::new());
        let mut push = |item: Item| {
            bytes += item.text.len() + 4 * item.ids.as_ref().map_or(0, Vec::len);
            batch.push(item);
            if bytes < BATCH_BYTES {
                return Ok(());
            }
            bytes = 0;
            sender.send(std::mem::take(&mut batch)).map_err(|_| stopped())
        };
        for path in paths {
            if is_token_file(path) {
                let file: Arc<Path> = Arc::from(path.as_path());
                let Some(separator) = self.tokenizer.document_end_id() else {
                    return Err(llm_data::Error::NoEndToken.into());
                };
                for_each_token_document(path, (separator, self.tokenizer.vocab_size()), &mut |ids| {
                    push(Item { text: String::new(), ids: Some(ids), file: file.clone() })
                })?;
            } else {
                let options = self.options;
                reports.push(for_each_document(std::slice::from_ref(path), options, &mut |document| {
                    push(Item { text: document.text, ids: None, file: document.file })
                })?);
            }
        }
        // Fails only if nobody receives any more.
        sender.send(batch).ok();
        Ok(reports)
    }
}

/// The error of a reader that nobody listens to any more.
fn stopped() -> llm_data::Error {
    llm_data::Error::Io { path: PathBuf::new(), source: IoError::from(ErrorKind::BrokenPipe) }
}
