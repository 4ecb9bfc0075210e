//! Unigram language model on bytes (Kudo 2018, arXiv 1804.10959), trained by the `tokenizers` library.

use tokenizers::models::unigram::{Unigram, UnigramTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Model as _};

use super::pieces::PieceCounts;
use super::{SPECIAL, TrainSettings};

/// The library sums counts in 32 bits.
const MAX_SUM: i64 = 1 << 31;
/// The score of each further token that the library adds is higher by this.
const ADDED_STEP: f64 = 0.0001;

/// Trains the model. The library adds numbers in an order that depends on the threads, so it runs on one.
pub(super) fn train(settings: &TrainSettings, counts: PieceCounts) -> tokenizers::Result<Unigram> {
    let sentences = sentences(counts);
    let mut trainer = UnigramTrainer::default();
    trainer.show_progress = false;
    trainer.vocab_size = settings.vocab_size as u32;
    trainer.special_tokens = SPECIAL.map(|token| AddedToken::from(token, true)).to_vec();
    trainer.initial_alphabet = ByteLevel::alphabet();
    trainer.max_piece_length = settings.max_token_length;
    let mut model = Unigram::default();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    pool.install(|| trainer.do_train(sentences, &mut model))?;
    in_order(&model)
}

/// The pieces in the alphabet of bytes, with counts whose sum fits 32 bits.
fn sentences(counts: PieceCounts) -> Vec<(String, u32)> {
    let pieces = counts.into_sorted();
    let all =
        pieces.iter().fold(0i64, |sum, (piece, count)| sum.saturating_add(count.saturating_mul(piece.len() as i64)));
    let divisor = all / MAX_SUM + 1;
    let scaled = |count: i64| u32::try_from((count / divisor).max(1)).unwrap_or(u32::MAX);
    pieces.into_iter().map(|(piece, count)| (crate::byte_level::spelled(piece.as_bytes()), scaled(count))).collect()
}

/// The same model in an order that does not depend on hash tables. The library gives the bytes that are not in the text the lowest
/// score and scores a step above it, in any order; here they are in the order of the alphabet.
fn in_order(model: &Unigram) -> tokenizers::Result<Unigram> {
    let pieces: Vec<(String, f64)> = model.iter().cloned().collect();
    let (special, learned) = pieces.split_at(SPECIAL.len().min(model.get_vocab_size()));
    let least = learned.iter().map(|(_, score)| *score).fold(f64::INFINITY, f64::min);
    let is_added = |piece: &str, score: f64| {
        let steps = (score - least) / ADDED_STEP;
        piece.chars().count() == 1 && steps < 256.5 && (steps - steps.round()).abs() < 1e-6
    };
    let (mut added, mut rest): (Vec<_>, Vec<_>) =
        learned.iter().cloned().partition(|(piece, score)| is_added(piece, *score));
    let mut scores: Vec<f64> = added.iter().map(|(_, score)| *score).collect();
    scores.sort_unstable_by(|a, b| b.total_cmp(a));
    added.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    rest.extend(added.into_iter().zip(scores).map(|((piece, _), score)| (piece, score)));
    rest.sort_by(|(a, m), (b, n)| n.total_cmp(m).then_with(|| a.cmp(b)));
    Unigram::from(special.iter().cloned().chain(rest).collect(), None, false)
}
