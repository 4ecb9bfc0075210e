//! Sampling of the next token of one answer: bias and masks, penalties, temperature, the samplers that leave tokens out, one draw.

use std::cell::RefCell;
use std::sync::Arc;

use crate::constraint::{CompiledConstraint, ConstraintState};
use crate::request::{Token, TokenLogprobs};
use crate::sampling::SamplerName;
use crate::{Error, Result, Sampling};

mod candidates;
mod chain;
mod history;
mod logprobs;
mod random;
mod repetition;

use candidates::{Candidates, Scratch};
use history::{Breakers, History};
use random::{Draw, Random};

/// Samples the tokens of one answer, with the state that samplers keep from token to token.
///
/// A token is a function of the logits, the settings, the tokens before it, and of (seed, answer, position); so an answer does not
/// depend on what runs beside it, and can be interrupted and continued.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Arc<Sampling>,
    vocab: usize,
    random: Random,
    /// The tokens that end an answer, in ascending order.
    end_ids: Vec<u32>,
    history: Option<History>,
    token_texts: Option<Arc<[Vec<u8>]>>,
    /// The limit of mirostat in bits after each token, and before the first.
    surprise: Vec<f64>,
    constraint: Option<ConstraintState>,
}

thread_local! {
    /// The memory of a row, by thread and not by answer, of which there are more.
    static SCRATCH: RefCell<(Scratch, Vec<f32>)> = RefCell::default();
}

impl Sampler {
    /// The sampler of answer `choice` of a request, for logits of `vocab` tokens.
    ///
    /// The settings must be valid ([`Sampling::validate`]) and have a seed ([`Sampling::seeded`]), so that all answers of a request
    /// share it; without one the sampler takes a new one.
    pub fn new(sampling: &Sampling, vocab: usize, choice: usize) -> Self {
        let mut sampling = sampling.clone().seeded();
        sampling.allowed_ids.iter_mut().for_each(|ids| ids.sort_unstable());
        Self {
            random: Random::new(sampling.seed.unwrap_or_default(), choice),
            vocab,
            end_ids: Vec::new(),
            history: History::is_needed(&sampling).then(|| History::new(&sampling)),
            token_texts: None,
            surprise: vec![2. * sampling.mirostat_tau],
            constraint: None,
            sampling: Arc::new(sampling),
        }
    }

    /// Sets the tokens that end the answer: [`Sampling::min_tokens`] holds them back.
    #[must_use]
    pub fn with_end_ids(mut self, ids: &[u32]) -> Self {
        self.end_ids = ids.to_vec();
        self
    }

    /// Sets the text of each token, [`llm_tokenizer::Tokenizer::token_texts`]: without it [`Sampling::dry_breakers`] have no effect. To be called
    /// before [`Self::with_prompt`].
    #[must_use]
    pub fn with_token_texts(mut self, texts: &Arc<[Vec<u8>]>) -> Self {
        self.token_texts = Some(texts.clone());
        self
    }

    /// Sets the prompt: the repetition penalty and DRY count its tokens.
    #[must_use]
    pub fn with_prompt(mut self, prompt: &[u32]) -> Self {
        let breakers = breakers(&self.sampling, self.token_texts.as_deref());
        if let Some(history) = &mut self.history {
            history.start(prompt, breakers);
        }
        self
    }

    /// Sets what the text must match. The end tokens must be those of the [`crate::ConstraintCompiler`].
    #[must_use]
    pub fn with_constraint(mut self, constraint: &CompiledConstraint) -> Self {
        self.constraint = Some(constraint.start());
        self
    }

    /// Whether a constraint allows nothing but an end token: the answer is complete without it.
    pub fn is_complete(&self) -> bool {
        self.constraint.as_ref().is_some_and(ConstraintState::is_complete)
    }

    /// Computes what the constraint allows for the next token, which [`Self::next`] does otherwise: while the model runs.
    pub fn prepare(&mut self) -> Result<()> {
        self.constraint.as_mut().map_or(Ok(()), |constraint| constraint.mask().map(|_| ()))
    }

    /// The seed, with which a request gives the same answers again.
    pub fn seed(&self) -> u64 {
        self.sampling.seed.unwrap_or_default()
    }

    /// Samples the token at `position` of the answer, from 0, from its logits `(vocab,)`, which are overwritten.
    ///
    /// `logprobs`: report the log-probability of the token and those of this many most likely tokens. NaN or infinite logits are an error.
    pub fn next(&mut self, logits: &mut [f32], position: usize, logprobs: Option<usize>) -> Result<Token> {
        let raw = logprobs.filter(|_| !self.sampling.processed_logprobs);
        self.prepare()?;
        let (id, logprobs, surprise) = SCRATCH.with_borrow_mut(|(scratch, copy)| {
            copy.clear();
            if raw.is_some() {
                copy.extend_from_slice(logits);
            }
            let mut candidates = self.candidates(logits, position, scratch)?;
            let (index, sum) = self.choose(&mut candidates, position);
            let id = candidates.id(index);
            let surprise = sum.map_or(0., |sum| (sum / f64::from(candidates.weights()[index])).log2());
            let logprobs = match (raw, logprobs) {
                (Some(top), _) => Some(logprobs::of_row(copy, id as usize, top, scratch)),
                (None, Some(top)) => {
                    let logit = candidates.logits()[index];
                    let scale = logprobs::Scale::of(&mut candidates);
                    let top = logprobs::most_likely(&mut candidates, scale, top);
                    Some(TokenLogprobs { logprob: scale.logprob(logit), top })
                }
                (None, None) => None,
            };
            Ok::<_, Error>((id, logprobs, surprise))
        })?;
        self.advance(id, surprise);
        Ok(Token { id, logprobs })
    }

    /// The distribution at `position` that [`Self::next`] samples from: (id, probability) in ascending order of ids, without tokens that
    /// cannot be sampled. The state does not change.
    pub fn distribution(&mut self, logits: &mut [f32], position: usize) -> Result<Vec<(u32, f32)>> {
        self.prepare()?;
        SCRATCH.with_borrow_mut(|(scratch, _)| {
            let mut candidates = self.candidates(logits, position, scratch)?;
            if self.sampling.is_greedy() {
                return Ok(vec![(candidates.id(candidates.best()), 1.)]);
            }
            let sum = candidates.weigh();
            let weights = candidates.weights().iter().enumerate();
            Ok(weights.map(|(i, &weight)| (candidates.id(i), (f64::from(weight) / sum) as f32)).collect())
        })
    }

    /// Adds a token that was not sampled by [`Self::next`], such as an accepted draft. `probability` is the one that
    /// [`Self::distribution`] gave it.
    pub fn accept(&mut self, id: u32, probability: f32) {
        self.advance(id, -f64::from(probability).log2());
    }

    /// Takes back the last tokens of the answer.
    pub fn rollback(&mut self, tokens: usize) {
        if let Some(history) = &mut self.history {
            history.rollback(tokens);
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.rollback(tokens);
        }
        self.surprise.truncate(self.surprise.len().saturating_sub(tokens).max(1));
    }

    /// A random number in [0, 1) at `position`, independent of those that choose tokens: whether a draft is accepted.
    pub fn accept_draw(&self, position: usize) -> f64 {
        self.random.uniform(Draw::Accept, position)
    }

    /// The random number in [0, 1) that chooses the token at `position`: a draft that is chosen by it is likely to be the same token.
    pub fn draft_draw(&self, position: usize) -> f64 {
        self.random.uniform(Draw::Token, position)
    }

    /// A random number in [0, 1) at `position`, independent of the others: the token in the place of a rejected draft.
    pub fn residual_draw(&self, position: usize) -> f64 {
        self.random.uniform(Draw::Residual, position)
    }

    fn advance(&mut self, id: u32, surprise: f64) {
        let breakers = breakers(&self.sampling, self.token_texts.as_deref());
        if let Some(history) = &mut self.history {
            history.push(id, breakers);
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.push(id);
        }
        if self.sampling.mirostat_tau > 0. {
            let limit = self.surprise.last().copied().unwrap_or_default();
            self.surprise.push(limit - self.sampling.mirostat_eta * (surprise - self.sampling.mirostat_tau));
        }
    }

    /// The tokens that can be sampled at `position`, with the logits of the distribution that is sampled from.
    fn candidates<'a>(
        &self,
        logits: &'a mut [f32],
        position: usize,
        scratch: &'a mut Scratch,
    ) -> Result<Candidates<'a>> {
        if logits.len() != self.vocab {
            return Err(Error::OtherVocabulary { logits: logits.len(), vocab_size: self.vocab });
        }
        if !llm_kernels::logit_range(logits).is_some_and(|(_, high)| high.is_finite()) {
            return Err(Error::LogitsNotFinite);
        }
        let mut candidates = Candidates::new(logits, scratch);
        self.mask(&mut candidates, position);
        if candidates.len() == 0 {
            return Err(Error::NoTokenAllowed);
        }
        let names = self.sampling.samplers.names();
        if self.sampling.is_greedy() {
            let penalties = names.iter().filter(|name| matches!(name, SamplerName::Penalties | SamplerName::Dry));
            penalties.for_each(|&name| self.apply(name, &mut candidates, position));
        } else {
            names.iter().for_each(|&name| self.apply(name, &mut candidates, position));
            if self.sampling.mirostat_tau > 0. {
                chain::limit_surprise(&mut candidates, self.surprise.last().copied().unwrap_or_default());
            }
        }
        Ok(candidates)
    }

    /// Adds the bias and leaves out the tokens that are not allowed.
    fn mask(&self, candidates: &mut Candidates, position: usize) {
        let sampling = &self.sampling;
        for (&id, bias) in &sampling.logit_bias {
            if let Some(logit) = candidates.get_mut(id) {
                *logit += bias;
            }
        }
        let mut held_back = if position < sampling.min_tokens { &self.end_ids[..] } else { &[] };
        if let Some(bits) = self.constraint.as_ref().and_then(ConstraintState::known_mask) {
            candidates.keep_bits(bits);
            // A text that is complete ends.
            if (0..candidates.len()).all(|index| self.end_ids.contains(&candidates.id(index))) {
                held_back = &[];
            }
        }
        for &id in sampling.banned_ids.iter().chain(held_back) {
            if let Some(logit) = candidates.get_mut(id) {
                *logit = f32::NEG_INFINITY;
            }
        }
        if let Some(allowed) = &sampling.allowed_ids {
            candidates.retain(|_, id, _| allowed.binary_search(&id).is_ok());
        }
        candidates.drop_masked();
    }

    /// Applies one sampler, if its setting is on.
    fn apply(&self, name: SamplerName, candidates: &mut Candidates, position: usize) {
        let s = &self.sampling;
        let truncates = s.mirostat_tau == 0.;
        match name {
            SamplerName::Penalties => {
                if let Some(history) = &self.history {
                    history.penalize(s, candidates);
                }
            }
            SamplerName::Dry if s.dry_multiplier > 0. => {
                if let Some(history) = &self.history {
                    history.penalize_sequences(s, candidates);
                }
            }
            SamplerName::Temperature if s.dynatemp_range > 0. => {
                chain::dynamic_temperature(candidates, s.temperature, s.dynatemp_range, s.dynatemp_exponent);
            }
            SamplerName::Temperature if s.temperature != 1. => chain::temperature(candidates, s.temperature),
            SamplerName::TopNSigma if truncates && s.top_n_sigma > 0. => chain::top_n_sigma(candidates, s.top_n_sigma),
            SamplerName::MinP if truncates && s.min_p > 0. => chain::min_p(candidates, s.min_p),
            SamplerName::TopK if truncates && s.top_k > 0 => candidates.keep_best(s.top_k),
            SamplerName::TypicalP if truncates && s.typical_p < 1. => chain::typical_p(candidates, s.typical_p),
            SamplerName::TopP if truncates && s.top_p < 1. => chain::top_p(candidates, s.top_p),
            SamplerName::Xtc if truncates && self.random.uniform(Draw::Xtc, position) < s.xtc_probability => {
                chain::exclude_top_choices(candidates, s.xtc_threshold);
            }
            _ => {}
        }
    }

    /// The index of the chosen candidate; if it was drawn, with the sum of the weights.
    fn choose(&self, candidates: &mut Candidates, position: usize) -> (usize, Option<f64>) {
        if self.sampling.is_greedy() {
            return (candidates.best(), None);
        }
        let sum = candidates.weigh();
        (candidates.draw(self.random.uniform(Draw::Token, position)), Some(sum))
    }
}

/// The breakers of DRY, if it is on and the texts of the tokens are known.
fn breakers<'a>(sampling: &'a Sampling, token_texts: Option<&'a [Vec<u8>]>) -> Option<Breakers<'a>> {
    let token_texts = token_texts.filter(|_| sampling.dry_multiplier > 0.)?;
    Some(Breakers { texts: &sampling.dry_breakers, token_texts })
}

#[cfg(test)]
mod tests;
