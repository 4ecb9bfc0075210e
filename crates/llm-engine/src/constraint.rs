//! Constrained decoding: only tokens with which the text can still match a grammar are sampled (Willard and Louf 2023; the grammars
//! and masks are those of the crate `llguidance`).

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use llm_tokenizer::Tokenizer;
use toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};

use crate::{Constraint, Error, Result};

mod grammar;

pub use grammar::ConstraintLimits;

/// Compiles constraints for the vocabulary of a model and keeps the ones that were used last.
///
/// Compiling takes milliseconds, seconds for a large schema: it belongs on a thread of its own and not on that of the engine.
pub struct ConstraintCompiler {
    factory: ParserFactory,
    limits: ConstraintLimits,
    cache: Mutex<Cache>,
}

/// Compiled constraints by content, with the number of their last use.
#[derive(Default)]
struct Cache {
    uses: u64,
    compiled: HashMap<[u8; 32], (u64, CompiledConstraint)>,
}

/// A constraint that is ready to be used by any number of answers. Cheap to clone.
#[derive(Clone)]
pub struct CompiledConstraint {
    matcher: Arc<Mutex<Matcher>>,
}

/// The state of a constraint in one answer.
#[derive(Clone)]
pub struct ConstraintState {
    matcher: Matcher,
    /// Whether each token of the answer was passed to the matcher.
    passed: Vec<bool>,
    mask: Option<SimpleVob>,
}

impl ConstraintCompiler {
    /// For the tokenizer of a model with `vocab_size` rows of logits, whose texts end at any of `end_ids`, at least one.
    ///
    /// The text of a token is that of [`Tokenizer::token_texts`], so byte-level vocabularies, `SentencePiece` and `WordPiece` serve.
    pub fn new(tokenizer: &Tokenizer, vocab_size: usize, end_ids: &[u32], limits: ConstraintLimits) -> Result<Self> {
        let Some(&first_end) = end_ids.first() else {
            return Err(problem(
                "the model has no end token, so a text could not end: set \"eos_token_id\" of config.json",
            ));
        };
        if let Some(&id) = end_ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(Error::TokenOutsideVocabulary { name: "end_ids", id, vocab_size });
        }
        let mut texts = tokenizer.token_texts();
        for id in tokenizer.special_ids() {
            // Special tokens have no text. A grammar in Lark's notation can name them.
            texts[id as usize].insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
        }
        texts.resize(vocab_size, Vec::new());
        let trie = TokTrie::from(&TokRxInfo::new(vocab_size as u32, first_end), &texts).with_eos_tokens(end_ids);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment).map_err(problem)?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits { verbose_errors: false, ..ParserLimits::default() };
        Ok(Self { factory, limits, cache: Mutex::default() })
    }

    /// Compiles a constraint, or finds it among the last ones. What is not supported, too large or too deep is an error that says so.
    pub fn compile(&self, constraint: &Constraint) -> Result<CompiledConstraint> {
        self.limits.check(constraint)?;
        let key = *blake3::hash(format!("{constraint:?}").as_bytes()).as_bytes();
        {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache.uses += 1;
            let now = cache.uses;
            if let Some((used, compiled)) = cache.compiled.get_mut(&key) {
                *used = now;
                return Ok(compiled.clone());
            }
        }
        let compiled = self.compile_new(grammar::of(constraint)?)?;
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let now = cache.uses;
        if cache.compiled.len() >= self.limits.cached {
            let oldest = cache.compiled.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| *key);
            oldest.and_then(|key| cache.compiled.remove(&key));
        }
        cache.compiled.insert(key, (now, compiled.clone()));
        Ok(compiled)
    }

    /// Compiles on a thread with a large stack: the compiler recurses over the grammar.
    fn compile_new(&self, grammar: TopLevelGrammar) -> Result<CompiledConstraint> {
        const STACK: usize = 64 << 20;
        let compile = || {
            let mut matcher = Matcher::new(self.factory.create_parser(grammar));
            // Some limits are found by the first mask.
            match (matcher.get_error(), matcher.compute_mask_or_eos()) {
                (Some(error), _) => Err(problem(error)),
                (None, Err(error)) => Err(problem(error)),
                (None, Ok(_)) => Ok(CompiledConstraint { matcher: Arc::new(Mutex::new(matcher)) }),
            }
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("grammar".to_owned()).stack_size(STACK);
            let thread = thread.spawn_scoped(scope, compile).map_err(|error| Error::Engine(error.to_string()))?;
            thread.join().unwrap_or_else(|_| Err(problem("the compiler of grammars panicked")))
        })
    }
}

impl CompiledConstraint {
    /// The state of an answer without a token.
    pub fn start(&self) -> ConstraintState {
        // Not a shared copy, whose cache would be locked by each answer in turn.
        let matcher = self.matcher.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        ConstraintState { matcher, passed: Vec::new(), mask: None }
    }
}

impl ConstraintState {
    /// The tokens that can come next, as bits; the end tokens, if the text is complete. Kept until the next token.
    pub fn mask(&mut self) -> Result<&[u32]> {
        let mask = match self.mask.take() {
            Some(mask) => mask,
            None => self.matcher.compute_mask_or_eos().map_err(problem)?,
        };
        Ok(self.mask.insert(mask).as_slice())
    }

    /// The mask, if it is computed.
    pub fn known_mask(&self) -> Option<&[u32]> {
        self.mask.as_ref().map(SimpleVob::as_slice)
    }

    /// Adds a token. One that does not match makes the next [`Self::mask`] an error.
    pub fn push(&mut self, id: u32) {
        self.mask = None;
        let is_open = !self.matcher.is_stopped();
        self.passed.push(is_open && self.matcher.consume_token(id).is_ok());
    }

    /// Takes back the last tokens.
    pub fn rollback(&mut self, tokens: usize) {
        self.mask = None;
        let removed = self.passed.split_off(self.passed.len().saturating_sub(tokens));
        // An error stays in the matcher and is reported by the next mask.
        let _ = self.matcher.rollback(removed.into_iter().filter(|passed| *passed).count());
    }

    /// Whether the text is complete and nothing can follow but an end token.
    pub fn is_complete(&self) -> bool {
        self.matcher.is_stopped() && self.matcher.stop_reason().is_ok()
    }
}

/// An error of a constraint; the first line of what the compiler says.
fn problem(cause: impl fmt::Display) -> Error {
    let text = cause.to_string();
    let text = text.replace("Unimplemented keys:", "keywords that are not supported:");
    let text = text.replace("NoExtensionBias", "no text matches, or the vocabulary cannot spell it");
    if text.contains("oneOf constraints are not supported") {
        let problem = "\"oneOf\" with parts that can overlap is not supported; use \"anyOf\"".to_owned();
        return Error::Constraint { problem };
    }
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("unknown");
    Error::Constraint { problem: line.trim().to_owned() }
}

impl fmt::Debug for ConstraintCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConstraintCompiler").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl fmt::Debug for CompiledConstraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CompiledConstraint")
    }
}

impl fmt::Debug for ConstraintState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConstraintState").field("tokens", &self.passed.len()).finish_non_exhaustive()
    }
}
