//! What the handles and the thread of the engine share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use llm_model::Model;

use super::admission::Queue;
use super::options::EngineOptions;
use super::stats::EngineStats;
use crate::{CompiledConstraint, Constraint, ConstraintCompiler, ConstraintLimits, Error, Result, TextModel};

/// What the handles and the thread of the engine share.
#[derive(Debug)]
pub(super) struct Shared {
    pub model: TextModel,
    /// The model with each of its adapters that is not active. Frozen weights are shared.
    pub adapted: BTreeMap<String, Model>,
    /// Drafts tokens.
    pub draft: Option<Model>,
    pub options: EngineOptions,
    pub stop_ids: Vec<u32>,
    /// The text of each token.
    pub token_texts: Arc<[Vec<u8>]>,
    /// Made at the first request with a constraint.
    pub constraints: OnceLock<Result<ConstraintCompiler, String>>,
    /// Tokens of prompt and answer at most: what the model and the KV cache have room for.
    pub context_length: usize,
    pub state: Mutex<State>,
}

impl Shared {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compiles a constraint for the vocabulary of the model.
    pub fn compile(&self, constraint: &Constraint) -> Result<CompiledConstraint> {
        let compiler = self.constraints.get_or_init(|| {
            let vocab = self.model.model.config().vocab_size;
            let limits = ConstraintLimits::default();
            ConstraintCompiler::new(&self.model.tokenizer, vocab, &self.stop_ids, limits)
                .map_err(|error| error.to_string())
        });
        let compiler = compiler.as_ref().map_err(|problem| Error::Constraint { problem: problem.clone() })?;
        compiler.compile(constraint)
    }
}

/// The part of [`Shared`] that changes.
#[derive(Debug, Default)]
pub(super) struct State {
    pub queue: Queue,
    pub stats: EngineStats,
    /// No new requests are taken; the thread ends when it has no work.
    pub closing: bool,
    /// The thread ends at once.
    pub aborting: bool,
}

/// Which hidden states become the embedding of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all tokens.
    Mean,
    /// That of the first token.
    First,
    /// That of the last token.
    Last,
}
