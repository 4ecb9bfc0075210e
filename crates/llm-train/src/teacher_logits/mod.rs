//! Stored log-probabilities of a teacher: its most likely tokens at each trained position of a dataset, so that a large teacher runs
//! once for many students.
//!
//! A folder has `manifest.json`, `shard-N.bin` (some conversations each), `recipe.toml` and, when it is complete, `checksums.b3`. A shard is
//! the number of its conversations and the length of each in bytes, as u32, and then their positions ([`codec`]).

mod codec;

use std::path::{Path, PathBuf};

use llm_kernels::TopKLogprobs;
use llm_model::write_atomic;
use serde::{Deserialize, Serialize};

use crate::examples::Example;
use crate::run::write_json;
use crate::{Error, Result};
pub(crate) use codec::Codec;

/// Conversations per shard.
pub(crate) const SHARD: usize = 256;

const MANIFEST: &str = "manifest.json";
const CHECKSUMS: &str = "checksums.b3";

/// What the log-probabilities of a folder are of. Students must be trained on the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// Version of the format.
    pub version: u32,
    /// Hash of the teacher's files.
    pub teacher: String,
    /// Fingerprint of the tokenizer.
    pub tokenizer: String,
    /// Hash of the token ids and loss masks of all conversations.
    pub data: String,
    /// The temperature of the log-probabilities.
    pub temperature: f64,
    /// Tokens per position.
    pub top_k: usize,
    /// Bits of a log-probability.
    pub bits: u32,
    /// Number of tokens of the tokenizer.
    pub vocab: usize,
    /// Number of conversations: those to train on, then those to validate on.
    pub train: usize,
    /// Number of conversations to validate on.
    pub validation: usize,
}

impl Manifest {
    /// The format of the positions.
    pub fn codec(&self) -> Codec {
        Codec { k: self.top_k, bits: self.bits, vocab: self.vocab }
    }

    /// Number of shards.
    pub fn shards(&self) -> usize {
        (self.train + self.validation).div_ceil(SHARD)
    }

    /// Writes it to a folder that has none.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let json = serde_json::to_value(self).map_err(|e| Error::Internal(format!("{MANIFEST}: {e}")))?;
        write_json(&dir.join(MANIFEST), &json)
    }

    /// Reads that of a folder.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        serde_json::from_str(&text).map_err(|e| Error::BadFile(format!("{}: {e}", path.display())))
    }
}

/// A hash of the conversations to train and to validate on.
pub(crate) fn data_hash(train: &[Example], validation: &[Example]) -> String {
    let all = [("train", train), ("validation", validation)];
    let named = all.into_iter().flat_map(|(split, examples)| {
        let content = |example: &Example| {
            let mask: String = example.loss_mask.iter().map(|&trained| if trained { '1' } else { '0' }).collect();
            format!("{:?} {mask}", example.ids)
        };
        examples.iter().enumerate().map(move |(i, example)| (format!("{split} {i:012}"), content(example)))
    });
    llm_files::combine_checksums(named.collect())
}

/// The number of trained positions of a conversation.
pub(crate) fn positions(example: &Example) -> usize {
    example.loss_mask.iter().skip(1).filter(|&&trained| trained).count()
}

/// The file of a shard.
pub(crate) fn shard_path(dir: &Path, shard: usize) -> PathBuf {
    dir.join(format!("shard-{shard:05}.bin"))
}

/// Writes a shard of encoded conversations.
pub(crate) fn write_shard(path: &Path, conversations: &[Vec<u8>]) -> Result<()> {
    let mut bytes = (conversations.len() as u32).to_le_bytes().to_vec();
    conversations.iter().for_each(|positions| bytes.extend((positions.len() as u32).to_le_bytes()));
    conversations.iter().for_each(|positions| bytes.extend(positions));
    Ok(write_atomic(path, &bytes)?)
}

/// Marks a folder as complete.
pub(crate) fn finish(dir: &Path) -> Result<()> {
    llm_files::write_checksums(dir, CHECKSUMS).map_err(Error::io(dir))
}

/// The stored log-probabilities of a folder.
#[derive(Debug)]
pub(crate) struct StoredLogits {
    pub manifest: Manifest,
    dir: PathBuf,
    /// The encoded positions of each conversation, with their number.
    conversations: Vec<(Vec<u8>, usize)>,
}

impl StoredLogits {
    /// Reads a folder. `expected` is what the student is trained on; the error names what differs.
    pub fn open(dir: &Path, expected: &Manifest, train: &[Example], validation: &[Example]) -> Result<Self> {
        let shown = dir.display();
        if !dir.join(CHECKSUMS).is_file() {
            let message = "is no complete folder of teacher logits; write it, or continue with: llm-train resume";
            return Err(Error::BadRequest(format!("{shown}: {message} {shown}")));
        }
        llm_files::verify_checksums(dir, CHECKSUMS).map_err(|e| Error::BadFile(format!("{shown}: {e}")))?;
        let manifest = Manifest::read(dir)?;
        let differs = |what: &str| Err(Error::BadRequest(format!("{shown}: was written {what}")));
        match () {
            () if manifest.version != expected.version => return differs("in another version of the format"),
            () if manifest.tokenizer != expected.tokenizer || manifest.vocab != expected.vocab => {
                return differs("with another tokenizer");
            }
            () if manifest.teacher != expected.teacher => return differs("by another teacher"),
            () if manifest.data != expected.data => {
                return differs(
                    "for other conversations; --data, --validation, seed, max_length and the table data must be equal",
                );
            }
            () => {}
        }
        if manifest.temperature != expected.temperature {
            let (found, wanted) = (manifest.temperature, expected.temperature);
            return Err(Error::BadRequest(format!(
                "temperature is {wanted}; {shown} has log-probabilities at {found}: set it to {found}, or write them again"
            )));
        }
        let mut conversations = Vec::new();
        let mut counts = train.iter().chain(validation).map(positions);
        for shard in 0..manifest.shards() {
            let path = shard_path(dir, shard);
            let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
            let read = split(&bytes).ok_or_else(|| Error::BadFile(format!("{}: is damaged", path.display())))?;
            conversations.extend(read.into_iter().map(|bytes| (bytes, counts.next().unwrap_or(0))));
        }
        if conversations.len() != manifest.train + manifest.validation {
            return Err(Error::BadFile(format!("{shown}: a shard is missing")));
        }
        Ok(Self { manifest, dir: dir.to_owned(), conversations })
    }

    /// The log-probabilities of these conversations, one after the other.
    pub fn of(&self, conversations: impl IntoIterator<Item = usize>) -> Result<TopKLogprobs> {
        let codec = self.manifest.codec();
        let mut all = TopKLogprobs { k: codec.k, ids: Vec::new(), logprobs: Vec::new(), tail: Vec::new() };
        for at in conversations {
            let (bytes, positions) = &self.conversations[at];
            let part = codec.decode(bytes, *positions).ok_or_else(|| {
                let dir = self.dir.display();
                Error::BadFile(format!("{dir}: the log-probabilities of conversation {at} are damaged"))
            })?;
            all.ids.extend(part.ids);
            all.logprobs.extend(part.logprobs);
            all.tail.extend(part.tail);
        }
        Ok(all)
    }
}

/// The conversations of a shard.
fn split(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let number = |at: usize| Some(u32::from_le_bytes(bytes.get(4 * at..4 * at + 4)?.try_into().ok()?) as usize);
    let count = number(0)?;
    let mut rest = bytes.get(4 * (count + 1)..)?;
    let mut conversations = Vec::new();
    for at in 0..count {
        let (head, tail) = rest.split_at_checked(number(at + 1)?)?;
        conversations.push(head.to_vec());
        rest = tail;
    }
    rest.is_empty().then_some(conversations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_hash_depends_on_ids_masks_order_and_split() {
        let example = |ids: &[u32], mask: &[bool]| Example { ids: ids.to_vec(), loss_mask: mask.to_vec() };
        let (a, b) = (example(&[1, 2, 3], &[false, true, true]), example(&[4, 5], &[false, true]));
        let hash = data_hash(&[a.clone(), b.clone()], &[]);
        assert_eq!(hash, data_hash(&[a.clone(), b.clone()], &[]));
        let masked = Example { loss_mask: vec![false, false, true], ..a.clone() };
        for (train, validation) in [
            (vec![b.clone(), a.clone()], vec![]),
            (vec![a.clone()], vec![b.clone()]),
            (vec![masked, b.clone()], vec![]),
        ] {
            assert_ne!(hash, data_hash(&train, &validation));
        }
        assert_eq!((positions(&a), positions(&b)), (2, 1));
    }

    #[test]
    fn a_shard_has_its_conversations() {
        let dir = tempfile::tempdir().unwrap();
        let path = shard_path(dir.path(), 3);
        let all = vec![vec![1, 2, 3], vec![], vec![9]];
        write_shard(&path, &all).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(split(&bytes).unwrap(), all);
        assert!(split(&bytes[..bytes.len() - 1]).is_none() && split(&[1, 0]).is_none());
    }
}
