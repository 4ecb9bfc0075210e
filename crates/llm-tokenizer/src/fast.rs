//! A faster encoder for byte-level byte-pair encoding, with the ids of the `tokenizers` crate.
//!
//! It does not track where each byte comes from, finds pieces without a backtracking regular expression, and keeps the ids of the
//! pieces that it has seen. It is used for vocabularies whose pieces [`Splitter`] knows; all others, and texts with added tokens,
//! are left to the `tokenizers` crate.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use ahash::AHashMap;
use regex_automata::meta::Regex;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::{AddedVocabulary, ModelWrapper};
use unicode_normalization_alignments::UnicodeNormalization;

use crate::byte_level::bytes_of;
use crate::split::{GPT2, Splitter, SplitterCache};

/// Text after which the encoder is built, in bytes: building it takes as long as encoding about this much without it.
const WORTH_BUILDING: usize = 256 << 10;
/// Longer pieces are not kept, in bytes.
const LONGEST_KEPT: usize = 48;
/// Number of pieces that are kept per thread, with about 6 MB of memory.
const MAX_KEPT: usize = 1 << 16;
/// Pieces of more bytes are merged with a heap: a search for the next merge takes time in proportion to the length.
const LONG_PIECE: usize = 128;

/// The encoder of a tokenizer, built when it is worth it. Shared by the clones of a tokenizer.
#[derive(Default)]
pub(crate) struct Fast {
    /// Bytes that were encoded without it.
    encoded: AtomicUsize,
    encoder: OnceLock<Option<BytePairEncoder>>,
}

impl Fast {
    /// The ids of a text; `None` if the `tokenizers` crate must encode it.
    pub(crate) fn encode(&self, text: &str, inner: &tokenizers::Tokenizer, special: &HashSet<u32>) -> Option<Vec<u32>> {
        let encoder = match self.encoder.get() {
            Some(encoder) => encoder,
            None if self.encoded.fetch_add(text.len(), Ordering::Relaxed) + text.len() < WORTH_BUILDING => return None,
            None => self.encoder.get_or_init(|| BytePairEncoder::new(inner, special)),
        };
        encoder.as_ref()?.encode(text)
    }
}

/// Byte-level byte-pair encoding.
pub(crate) struct BytePairEncoder {
    splitter: Splitter,
    /// Whether the text is normalized to Unicode NFC.
    composes: bool,
    /// The added tokens that are found in ordinary text.
    added: Option<Regex>,
    /// The id of each byte.
    bytes: [u32; 256],
    merges: Merges,
    /// The tokens that a piece is looked up in before it is merged (`ignore_merges`).
    whole: AHashMap<Box<[u8]>, u32>,
    /// The working memory of threads that are not encoding.
    memory: Mutex<Vec<Memory>>,
}

/// The rank and the result of each merge, as `rank << 32 | id`.
type Merges = AHashMap<(u32, u32), u64>;
/// No merge.
const NONE: u64 = u64::MAX;

/// Working memory of one thread.
struct Memory {
    splitter: SplitterCache,
    /// The ids of a piece, as a range of `ids`.
    kept: AHashMap<Box<[u8]>, (u32, u32)>,
    ids: Vec<u32>,
    symbols: Vec<u32>,
    ranks: Vec<u64>,
}

/// The model in `tokenizer.json`.
#[derive(Deserialize)]
struct Model {
    vocab: HashMap<String, u32>,
    merges: Vec<(String, String)>,
    dropout: Option<f32>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    ignore_merges: bool,
}

impl BytePairEncoder {
    /// `None` if the tokenizer has another model, normalizer or pre-tokenizer, or if merges can give a special token.
    pub(crate) fn new(inner: &tokenizers::Tokenizer, special: &HashSet<u32>) -> Option<Self> {
        let ModelWrapper::BPE(model) = inner.get_model() else { return None };
        let splitter = splitter(&serde_json::to_value(inner.get_pre_tokenizer()).ok()?)?;
        let composes = match serde_json::to_value(inner.get_normalizer()).ok()? {
            Value::Null => false,
            normalizer if normalizer["type"] == "NFC" => true,
            _ => return None,
        };
        let model: Model = serde_json::from_str(&serde_json::to_string(model).ok()?).ok()?;
        let changed = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        if model.dropout.is_some() || changed(&model.continuing_subword_prefix) || changed(&model.end_of_word_suffix) {
            return None;
        }
        let mut bytes = [0; 256];
        for (byte, id) in (0..=255).zip(&mut bytes) {
            *id = *model.vocab.get(&crate::byte_level::spelled(&[byte]))?;
        }
        let mut merges = Merges::with_capacity(model.merges.len());
        for ((first, second), rank) in model.merges.iter().zip(0u64..) {
            let id = |token: &str| model.vocab.get(token).copied();
            let joined = id(&[first.as_str(), second].concat())?;
            merges.insert((id(first)?, id(second)?), rank << 32 | u64::from(joined));
        }
        let mut whole = AHashMap::new();
        if model.ignore_merges {
            let tokens = model.vocab.iter().filter_map(|(token, id)| Some((bytes_of(token)?.into_boxed_slice(), *id)));
            whole.extend(tokens);
        }
        let results = merges.values().map(|merge| *merge as u32).chain(bytes).chain(whole.values().copied());
        if results.into_iter().any(|id| special.contains(&id)) {
            return None;
        }
        let added = added_tokens(inner.get_added_vocabulary())?;
        Some(Self { splitter, composes, added, bytes, merges, whole, memory: Mutex::default() })
    }

    /// The ids of a text; `None` if it contains an added token.
    pub(crate) fn encode(&self, text: &str) -> Option<Vec<u32>> {
        let found = |text: &str| self.added.as_ref().is_some_and(|added| added.is_match(text));
        let composed = match self.composes && !text.is_ascii() {
            true => Cow::Owned(text.nfc().map(|(c, _)| c).collect::<String>()),
            false => Cow::Borrowed(text),
        };
        if found(text) || (composed != text && found(&composed)) {
            return None;
        }
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut memory = memory.unwrap_or_else(|| Memory::new(&self.splitter));
        let mut ids = Vec::with_capacity(composed.len() / 4);
        let Memory { splitter, kept, ids: arena, symbols, ranks } = &mut memory;
        self.splitter.for_each(splitter, &composed, &mut |piece| {
            let piece = piece.as_bytes();
            if let Some(&(start, end)) = kept.get(piece) {
                ids.extend_from_slice(&arena[start as usize..end as usize]);
                return;
            }
            let start = ids.len();
            self.merge(piece, symbols, ranks, &mut ids);
            if piece.len() <= LONGEST_KEPT {
                if kept.len() == MAX_KEPT {
                    kept.clear();
                    arena.clear();
                }
                let begin = arena.len() as u32;
                arena.extend_from_slice(&ids[start..]);
                kept.insert(piece.into(), (begin, arena.len() as u32));
            }
        });
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
        Some(ids)
    }

    /// Appends the ids of a piece: of all merges that apply the first in the list is made, the leftmost of equal ones.
    fn merge(&self, piece: &[u8], symbols: &mut Vec<u32>, ranks: &mut Vec<u64>, ids: &mut Vec<u32>) {
        if let Some(id) = self.whole.get(piece) {
            ids.push(*id);
            return;
        }
        symbols.clear();
        symbols.extend(piece.iter().map(|byte| self.bytes[usize::from(*byte)]));
        if symbols.len() > LONG_PIECE {
            return merge_long(&self.merges, symbols, ids);
        }
        let rank = |first: u32, second: u32| self.merges.get(&(first, second)).copied().unwrap_or(NONE);
        ranks.clear();
        ranks.extend(symbols.windows(2).map(|pair| rank(pair[0], pair[1])));
        while let Some((at, merge)) = ranks.iter().copied().enumerate().min_by_key(|(_, merge)| *merge) {
            if merge == NONE {
                break;
            }
            symbols[at] = merge as u32;
            symbols.remove(at + 1);
            ranks.remove(at);
            if at > 0 {
                ranks[at - 1] = rank(symbols[at - 1], symbols[at]);
            }
            if at < ranks.len() {
                ranks[at] = rank(symbols[at], symbols[at + 1]);
            }
        }
        ids.extend_from_slice(symbols);
    }
}

/// A symbol that was merged into the one before it.
const MERGED: u32 = u32::MAX;

/// The same merges with a heap, for long pieces.
fn merge_long(merges: &Merges, symbols: &mut [u32], ids: &mut Vec<u32>) {
    let count = symbols.len();
    let mut next: Vec<usize> = (1..=count).collect();
    let mut previous: Vec<usize> = (0..count).map(|at| at.wrapping_sub(1)).collect();
    // (merge, position), and the pair to detect entries that are out of date.
    let mut heap = BinaryHeap::new();
    let candidate = |symbols: &[u32], at: usize, after: usize| {
        let pair = (symbols[at], *symbols.get(after)?);
        merges.get(&pair).map(|merge| Reverse((*merge, at, pair)))
    };
    heap.extend((1..count).filter_map(|after| candidate(symbols, after - 1, after)));
    while let Some(Reverse((merge, at, pair))) = heap.pop() {
        let after = next[at];
        if after == count || (symbols[at], symbols[after]) != pair {
            continue;
        }
        symbols[at] = merge as u32;
        symbols[after] = MERGED;
        next[at] = next[after];
        if let Some(previous) = previous.get_mut(next[at]) {
            *previous = at;
        }
        heap.extend(candidate(symbols, at, next[at]));
        if at > 0 {
            heap.extend(candidate(symbols, previous[at], at));
        }
    }
    ids.extend(symbols.iter().copied().filter(|id| *id != MERGED));
}

impl Memory {
    fn new(splitter: &Splitter) -> Self {
        Self {
            splitter: splitter.cache(),
            kept: AHashMap::new(),
            ids: Vec::new(),
            symbols: Vec::new(),
            ranks: Vec::new(),
        }
    }
}

/// The pieces of a byte-level pre-tokenizer: `ByteLevel` with or without a pattern before it, with or without single digits.
fn splitter(pre_tokenizer: &Value) -> Option<Splitter> {
    let one = std::slice::from_ref(pre_tokenizer);
    let mut steps = pre_tokenizer["pretokenizers"].as_array().map_or(one, Vec::as_slice);
    let (last, before) = steps.split_last()?;
    if last["type"] != "ByteLevel" || last["add_prefix_space"] != false {
        return None;
    }
    steps = before;
    let digits = steps.first().is_some_and(|step| step["type"] == "Digits" && step["individual_digits"] == true);
    if digits {
        steps = &steps[1..];
    }
    match (steps, last["use_regex"] != false) {
        ([], true) => Splitter::byte_level(GPT2, digits),
        ([step], false) if step["type"] == "Split" && step["behavior"] == "Isolated" && step["invert"] == false => {
            Splitter::byte_level(step["pattern"]["Regex"].as_str()?, digits)
        }
        _ => None,
    }
}

/// Finds the added tokens that are not special; the text of special tokens is ordinary text. The outer `None` means that they cannot
/// be searched for.
#[allow(clippy::option_option)]
fn added_tokens(added: &AddedVocabulary) -> Option<Option<Regex>> {
    let ordinary = added.get_added_tokens_decoder().values().filter(|token| !token.special);
    let literal = |text: &str| text.chars().map(|c| format!("\\x{{{:x}}}", u32::from(c))).collect();
    let texts: Vec<String> = ordinary.map(|token| literal(&token.content)).collect();
    if texts.is_empty() {
        return Some(None);
    }
    Regex::new_many(&texts).ok().map(Some)
}
