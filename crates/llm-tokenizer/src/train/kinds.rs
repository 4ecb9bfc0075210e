//! The tokenizers of each kind, from the counts of pieces.

use ahash::AHashMap;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::models::bpe::BPE;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split as Pattern, SplitPattern};
use tokenizers::pre_tokenizers::whitespace::Whitespace;
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use super::merges::{Limits, Pair, Token, Words, learn};
use super::pieces::PieceCounts;
use super::{Kind, SPECIAL, Split, TrainSettings, UNKNOWN, unigram};
use crate::byte_level::{char_of, spelled};
use crate::{Error, Result, Tokenizer};

/// The prefix of a token of `WordPiece` inside of a word.
const CONTINUES: &str = "##";
/// Longer words are `<unk>` for `WordPiece`, in characters, as in BERT.
const MAX_WORD: usize = 100;

type Inner = tokenizers::Tokenizer;

/// Learns the vocabulary of a tokenizer.
pub(super) fn build(settings: &TrainSettings, counts: PieceCounts) -> Result<Tokenizer> {
    let failed = |cause: tokenizers::Error| Error::Train { cause };
    let inner = match settings.kind {
        Kind::Bpe => bpe(settings, counts),
        Kind::Unigram => {
            unigram::train(settings, counts).and_then(|model| byte_level(Inner::new(model), settings.split))
        }
        Kind::WordPiece => word_piece(settings, counts),
        Kind::Word => words(settings, counts),
        Kind::Char => characters(settings, counts),
    };
    let mut inner = inner.map_err(failed)?;
    let special = SPECIAL.iter().copied().chain((!settings.kind.is_byte_level()).then_some(UNKNOWN));
    let special: Vec<AddedToken> = special.map(|token| AddedToken::from(token, true)).collect();
    inner.add_special_tokens(special).map_err(failed)?;
    let mut tokenizer = Tokenizer::from_trained(inner)?;
    if !settings.kind.is_byte_level() {
        tokenizer.set_config("unk_token", UNKNOWN);
    }
    Ok(tokenizer)
}

/// Adds the pre-tokenizer and the decoder of a byte-level tokenizer.
fn byte_level(mut inner: Inner, split: Split) -> tokenizers::Result<Inner> {
    let whole = ByteLevel::new(false, false, true);
    if split == Split::Gpt2 {
        inner.with_pre_tokenizer(Some(whole));
    } else {
        let pattern = SplitPattern::Regex(split.pattern().to_owned());
        let pattern = Pattern::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
        let bytes = ByteLevel::new(false, false, false);
        inner.with_pre_tokenizer(Some(Sequence::new(vec![pattern.into(), bytes.into()])));
    }
    inner.with_post_processor(Some(whole));
    inner.with_decoder(Some(whole));
    Ok(inner)
}

/// The special tokens as the first tokens of a vocabulary.
fn special_tokens() -> Vec<Token> {
    SPECIAL.iter().map(|token| Token::symbol(token.as_bytes(), false)).collect()
}

fn limits(settings: &TrainSettings) -> Limits {
    let TrainSettings { vocab_size, min_frequency, max_token_length, ties, .. } = *settings;
    Limits { vocab_size, min_frequency, max_token_length, ties }
}

fn bpe(settings: &TrainSettings, counts: PieceCounts) -> tokenizers::Result<Inner> {
    let (tokens, merges) = learn_bpe(settings, counts);
    let spelled = |id: u32| spelled(&tokens[id as usize].bytes);
    let vocabulary: AHashMap<String, u32> = (0..tokens.len() as u32).map(|id| (spelled(id), id)).collect();
    let merges = merges.iter().map(|(first, second)| (spelled(*first), spelled(*second))).collect();
    byte_level(Inner::new(BPE::builder().vocab_and_merges(vocabulary, merges).build()?), settings.split)
}

/// The tokens and merges of byte-level BPE. The bytes have ids in the order of their characters.
pub(super) fn learn_bpe(settings: &TrainSettings, counts: PieceCounts) -> (Vec<Token>, Vec<Pair>) {
    let mut tokens = special_tokens();
    let mut bytes: Vec<u8> = (0..=255).collect();
    bytes.sort_unstable_by_key(|byte| char_of(*byte));
    let mut ids = [0; 256];
    for byte in bytes {
        ids[usize::from(byte)] = tokens.len() as u32;
        tokens.push(Token::symbol(&[byte], false));
    }
    let mut words = Words::with_capacity(counts.len(), counts.bytes());
    for (piece, count) in counts.into_pieces() {
        words.push(piece.bytes().map(|byte| ids[usize::from(byte)]), count);
    }
    let merges = learn(&mut tokens, words, &limits(settings));
    (tokens, merges)
}

/// The merges of byte-pair encoding give the tokens, as in the `tokenizers` library; encoding takes the longest.
fn word_piece(settings: &TrainSettings, counts: PieceCounts) -> tokenizers::Result<Inner> {
    let symbols = |word: &str| -> Vec<(bool, char)> { word.chars().enumerate().map(|(i, c)| (i > 0, c)).collect() };
    let mut alphabet: AHashMap<(bool, char), i64> = AHashMap::new();
    let pieces = counts.into_sorted();
    for (word, count) in &pieces {
        symbols(word).into_iter().for_each(|symbol| *alphabet.entry(symbol).or_default() += count);
    }
    let mut tokens = special_tokens();
    tokens.push(Token::symbol(UNKNOWN.as_bytes(), false));
    // Rare characters leave half of the vocabulary for longer tokens.
    let mut symbols_by_id = most_frequent(alphabet, 1, (settings.vocab_size - tokens.len()).div_ceil(2));
    symbols_by_id.sort_unstable();
    let mut ids = AHashMap::new();
    for symbol in symbols_by_id {
        ids.insert(symbol, tokens.len() as u32);
        tokens.push(Token::symbol(symbol.1.encode_utf8(&mut [0; 4]).as_bytes(), symbol.0));
    }
    let mut words = Words::with_capacity(pieces.len(), 0);
    for (word, count) in pieces {
        let known: Option<Vec<u32>> = symbols(&word).iter().map(|symbol| ids.get(symbol).copied()).collect();
        if let Some(known) = known {
            words.push(known.into_iter(), count);
        }
    }
    learn(&mut tokens, words, &limits(settings));
    let name = |token: &Token| {
        let text = String::from_utf8_lossy(&token.bytes);
        if token.continues { format!("{CONTINUES}{text}") } else { text.into_owned() }
    };
    let vocabulary: AHashMap<String, u32> = tokens.iter().zip(0..).map(|(token, id)| (name(token), id)).collect();
    let model = WordPiece::builder().vocab(vocabulary).unk_token(UNKNOWN.to_owned());
    let model = model.continuing_subword_prefix(CONTINUES.to_owned()).max_input_chars_per_word(MAX_WORD);
    let mut inner = Inner::new(model.build()?);
    inner.with_pre_tokenizer(Some(Whitespace));
    inner.with_decoder(Some(tokenizers::decoders::wordpiece::WordPiece::new(CONTINUES.to_owned(), false)));
    Ok(inner)
}

fn words(settings: &TrainSettings, counts: PieceCounts) -> tokenizers::Result<Inner> {
    let tokens = most_frequent(counts.into_pieces(), settings.min_frequency, room(settings));
    let model = WordLevel::builder().vocab(with_special(tokens)).unk_token(UNKNOWN.to_owned()).build()?;
    let mut inner = Inner::new(model);
    inner.with_pre_tokenizer(Some(Whitespace));
    Ok(inner)
}

/// Byte-pair encoding without merges: one token for each character.
fn characters(settings: &TrainSettings, counts: PieceCounts) -> tokenizers::Result<Inner> {
    let mut tokens = most_frequent(counts.into_pieces(), settings.min_frequency, room(settings));
    tokens.sort_unstable();
    let model = BPE::builder().vocab_and_merges(with_special(tokens), Vec::new()).unk_token(UNKNOWN.to_owned());
    let mut inner = Inner::new(model.build()?);
    inner.with_decoder(Some(Fuse::new()));
    Ok(inner)
}

/// The number of tokens besides the special ones.
fn room(settings: &TrainSettings) -> usize {
    settings.vocab_size - SPECIAL.len() - 1
}

/// The special tokens, `<unk>`, and `tokens`, with their ids.
fn with_special(tokens: Vec<Box<str>>) -> AHashMap<String, u32> {
    let all = SPECIAL.iter().chain([&UNKNOWN]).map(|token| (*token).to_owned());
    all.chain(tokens.into_iter().map(String::from)).zip(0..).collect()
}

/// The items that occur at least `min_count` times, at most `most`: the most frequent first, equal ones in alphabetical order.
fn most_frequent<T: Ord>(counts: impl IntoIterator<Item = (T, i64)>, min_count: u64, most: usize) -> Vec<T> {
    let mut all: Vec<(T, i64)> = counts.into_iter().filter(|(_, count)| *count >= min_count as i64).collect();
    all.sort_unstable_by(|(a, m), (b, n)| n.cmp(m).then_with(|| a.cmp(b)));
    all.truncate(most);
    all.into_iter().map(|(item, _)| item).collect()
}
