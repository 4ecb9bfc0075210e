//! Token shards as files of other programs.

use std::path::Path;

use super::dataset::TokenDataset;
use super::manifest::Manifest;
use super::writer::keep;
use super::{llm_c, megatron};
use crate::{Error, Result};

/// A format of token files of another program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// `.bin` of llm.c and modded-nanogpt: a header, then the ids; each document begins with the separator.
    LlmC,
    /// `.bin` and `.idx` of Megatron-LM: each document is a sequence that ends with the separator.
    Megatron,
}

/// Writes each split of a folder of token shards into a new folder `out`: `train.bin` and `held_out.bin`, and their `.idx`. Splits
/// without documents are left out. Returns the names of the splits.
pub fn export_shards(dir: impl AsRef<Path>, format: ExportFormat, out: impl AsRef<Path>) -> Result<Vec<String>> {
    let (dir, out) = (dir.as_ref(), out.as_ref());
    if out.exists() && std::fs::read_dir(out).map_err(Error::io(out))?.next().is_some() {
        return Err(Error::unusable(out, "already exists and is not empty; choose another folder"));
    }
    let names: Vec<String> = Manifest::read(dir)?.splits.into_keys().collect();
    let splits = names.into_iter().map(|name| Ok((TokenDataset::open(dir, &name)?, name)));
    let splits: Vec<_> = splits.collect::<Result<Vec<_>>>()?.into_iter().filter(|(data, _)| !data.is_empty()).collect();
    let folder = llm_files::temp_folder(out).map_err(Error::io(out))?;
    for (data, name) in &splits {
        let path = |suffix: &str| folder.path().join(format!("{name}.{suffix}"));
        match format {
            ExportFormat::LlmC => llm_c::write(data, &path("bin"))?,
            ExportFormat::Megatron => megatron::write(data, &path("idx"), &path("bin"))?,
        }
    }
    keep(folder, out)?;
    Ok(splits.into_iter().map(|(_, name)| name).collect())
}
