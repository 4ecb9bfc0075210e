//! What the alignment stages begin with: the chat model to train, and the rewards of its replies.

use std::path::{Path, PathBuf};

use candle_core::Device;
use llm_model::{Head, Model};
use llm_tokenizer::{ChatFormat, Tokenizer};

use super::{chat_format, load_model, load_tokenizer};
use crate::Result;
use crate::adapters::tokenizer_folder;
use crate::compat::{TokenSource, check_compatible};
use crate::rewards::{Reward, RewardModel, RewardTable};

/// A chat model at the start of a stage.
pub(super) struct Policy {
    /// The folder of the tokenizer.
    folder: PathBuf,
    /// The tokenizer; its end token is that of a turn.
    pub tokenizer: Tokenizer,
    /// The model without adapters; it names the end of a turn as its end token.
    pub base: Model,
    /// The token that ends a reply.
    pub end_of_turn: u32,
    /// The token of padding.
    pub pad: u32,
}

impl Policy {
    /// Loads the model in the folder `model`, with the tokenizer of its `adapter` if that has one, and checks that they match.
    pub fn load(model: &Path, adapter: Option<&PathBuf>) -> Result<Self> {
        let folder = tokenizer_folder(model, adapter);
        let tokenizer = load_tokenizer(folder)?.with_end_of_turn_as_eos();
        let ChatFormat { end_of_turn, pad, .. } = *chat_format(&tokenizer, folder)?;
        let mut base = load_model(model, Head::LanguageModel)?;
        check_compatible(base.config(), (&tokenizer, folder), &[])?;
        base.set_end_of_turn(end_of_turn);
        Ok(Self { folder: folder.to_owned(), tokenizer, base, end_of_turn, pad })
    }

    /// The rewards of its replies, on a device. Reward models must have the tokenizer of the policy.
    pub fn rewards<'a>(&self, tables: &[RewardTable], models: &[PathBuf], device: &Device) -> Result<Reward<'a>> {
        let mut reward = Reward::open(tables, models, &self.tokenizer)?;
        reward.to_device(device)?;
        let others: Vec<TokenSource> = reward.models().map(RewardModel::token_source).collect();
        check_compatible(self.base.config(), (&self.tokenizer, &self.folder), &others)?;
        Ok(reward)
    }
}
