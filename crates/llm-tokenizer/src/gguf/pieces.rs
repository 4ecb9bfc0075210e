//! The `tokenizer.json` of the vocabularies of `SentencePiece`: byte-pair encoding by scores, and unigram models.

use std::collections::{HashMap, HashSet};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::{BYTE, GgufVocabulary, NORMAL, SPACE, USER_DEFINED, unsupported};
use crate::Result;

/// The maximum number of bytes in all merges per byte in all tokens; bounds the work for a malicious file. Real tokenizers are far
/// below: a token of `n` characters has at most `n - 1` merges, and only if all its parts are tokens.
const MAX_MERGE_BYTES: usize = 32;

/// The `tokenizer.json` of a `SentencePiece` vocabulary with this model, without the added tokens.
pub(super) fn sentence_piece(vocabulary: &GgufVocabulary, model: Value) -> Value {
    let mut normalizers = Vec::new();
    if !vocabulary.precompiled_charsmap.is_empty() {
        let table = BASE64_STANDARD.encode(&vocabulary.precompiled_charsmap);
        normalizers.push(json!({"type": "Precompiled", "precompiled_charsmap": table}));
    }
    if vocabulary.remove_extra_whitespaces {
        normalizers.push(json!({"type": "Strip", "strip_left": true, "strip_right": true}));
        normalizers.push(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}));
    }
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if vocabulary.add_space_prefix.unwrap_or(true) {
        normalizers.push(json!({"type": "Prepend", "prepend": SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    normalizers.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE}));
    json!({
        "version": "1.0",
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    })
}

/// The model of a "llama" vocabulary, without the tokens.
pub(super) fn bpe_of_scores(vocabulary: &GgufVocabulary, unknown: Option<&String>) -> Result<Value> {
    check_scores(vocabulary)?;
    Ok(json!({
        "type": "BPE", "unk_token": unknown, "fuse_unk": true, "byte_fallback": true,
        "merges": merges_of_scores(vocabulary)?,
    }))
}

/// The unigram model of a "t5" vocabulary (Kudo 2018, arXiv 1804.10959). `SentencePiece` finds normal and user-defined pieces in a
/// text; the others get a score so low that they are not found.
pub(super) fn unigram(vocabulary: &GgufVocabulary) -> Result<Value> {
    check_scores(vocabulary)?;
    let GgufVocabulary { tokens, token_type, scores, .. } = vocabulary;
    let unknown = vocabulary.unknown_token_id.filter(|id| (*id as usize) < tokens.len());
    let unknown = unknown.ok_or_else(|| unsupported("a unigram model needs a token for unknown characters"))?;
    if let Some(score) = scores.iter().find(|score| !score.is_finite()) {
        return Err(unsupported(format!("a score is {score}; it must be finite")));
    }
    let pieces = tokens.iter().zip(scores).enumerate().map(|(id, (token, score))| {
        let found = matches!(token_type.get(id).copied().unwrap_or(NORMAL), NORMAL | USER_DEFINED);
        json!([token, if found { *score } else { NEVER }])
    });
    Ok(json!({
        "type": "Unigram", "unk_id": unknown, "byte_fallback": token_type.contains(&BYTE),
        "vocab": pieces.collect::<Vec<_>>(),
    }))
}

/// The score of a piece that is not found in a text. Scores are logarithms of probabilities, about -20 for the rarest piece.
const NEVER: f32 = -1e4;

fn check_scores(vocabulary: &GgufVocabulary) -> Result<()> {
    let (tokens, scores) = (vocabulary.tokens.len(), vocabulary.scores.len());
    if tokens == scores { Ok(()) } else { Err(unsupported(format!("{tokens} tokens but {scores} scores"))) }
}

/// All pairs of tokens whose concatenation is a token, sorted by the score of that token, highest first.
fn merges_of_scores(vocabulary: &GgufVocabulary) -> Result<Vec<(&str, &str)>> {
    let kind = |id: usize| vocabulary.token_type.get(id).copied().unwrap_or(NORMAL);
    let normal = || vocabulary.tokens.iter().enumerate().filter(|(id, _)| kind(*id) == NORMAL);
    let ids: HashMap<&str, usize> = normal().map(|(id, token)| (token.as_str(), id)).collect();
    let mut merges = Vec::new();
    let mut left = MAX_MERGE_BYTES * (1024 + vocabulary.tokens.iter().map(String::len).sum::<usize>());
    for (id, token) in normal() {
        for (at, _) in token.char_indices().skip(1) {
            let (a, b) = token.split_at(at);
            if let (Some(first), Some(second)) = (ids.get(a), ids.get(b)) {
                let Some(rest) = left.checked_sub(token.len()) else {
                    return Err(unsupported(format!(
                        "too many merges: the token {token:?} and others are concatenations of too many pairs of tokens"
                    )));
                };
                left = rest;
                merges.push((vocabulary.scores[id], (first, second), (a, b)));
            }
        }
    }
    merges.sort_by(|(one, ids, _), (other, others, _)| other.total_cmp(one).then(ids.cmp(others)));
    let mut seen = HashSet::new();
    Ok(merges.into_iter().map(|(.., pair)| pair).filter(|pair| seen.insert(*pair)).collect())
}
