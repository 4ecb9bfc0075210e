//! Validates a `tokenizer.json` before the `tokenizers` crate (0.23) reads it. Input on which that crate panics, or uses excessive
//! time or memory, becomes an error that names the key.
//!
//! One panic remains, a regular expression that backtracks too long on some text; [`catch_panic`] turns it into an error.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value};

/// The maximum factor by which all replacements of a normalizer, pre-tokenizer, post-processor or decoder may lengthen a text.
const MAX_GROWTH: usize = 1 << 10;

/// Validates and parses a `tokenizer.json`: `text`, and the same as parsed `json`.
pub(crate) fn parse_tokenizer(json: &Value, text: &str) -> tokenizers::Result<tokenizers::Tokenizer> {
    check(json)?;
    catch_panic(|| text.parse())
}

/// Returns an error that describes the first problem of a `tokenizer.json`.
fn check(json: &Value) -> Result<(), String> {
    check_ids(json)?;
    check_merges(&json["model"])?;
    for key in ["normalizer", "pre_tokenizer", "post_processor", "decoder"] {
        let mut growth = 1;
        check_step(&json[key], &mut growth).map_err(|message| format!("\"{key}\": {message}"))?;
    }
    Ok(())
}

/// Limits the highest id, because the crate allocates memory in proportion to it.
fn check_ids(json: &Value) -> Result<(), String> {
    let vocabulary = json["model"]["vocab"].as_object().into_iter().flat_map(Map::values);
    let added = json["added_tokens"].as_array().into_iter().flatten().map(|token| &token["id"]);
    let listed = json["model"]["vocab"].as_array().map_or(0, Vec::len) as u64; // the ids of a Unigram model are indices
    let (mut highest, mut count) = (0, listed);
    for id in vocabulary.chain(added).filter_map(Value::as_u64) {
        (highest, count) = (highest.max(id), count + 1);
    }
    match highest > 4 * count + (1 << 16) {
        true => Err(format!("id {highest} is too high for {count} tokens")),
        false => Ok(()),
    }
}

/// Checks that no merge gives a token longer than the longest token of the vocabulary: the crate concatenates each pair, without
/// the prefix of the second token, in a buffer of that size.
fn check_merges(model: &Value) -> Result<(), String> {
    let vocabulary = model["vocab"].as_object().into_iter().flat_map(Map::keys);
    let longest = vocabulary.map(String::len).max().unwrap_or(0);
    let prefix = model["continuing_subword_prefix"].as_str().unwrap_or_default();
    for merge in model["merges"].as_array().into_iter().flatten() {
        let pair = match merge {
            Value::String(text) => text.split_once(' '),
            Value::Array(pair) => pair.first().and_then(Value::as_str).zip(pair.get(1).and_then(Value::as_str)),
            _ => None,
        };
        let Some((first, second)) = pair else { continue }; // the crate returns an error for this
        let rest = second
            .strip_prefix(prefix)
            .ok_or_else(|| format!("the merge {merge} does not have the prefix {prefix:?}"))?;
        if first.len() + rest.len() > longest {
            return Err(format!("the merge {merge} gives a token longer than any in \"vocab\""));
        }
    }
    Ok(())
}

/// Checks a normalizer, pre-tokenizer, post-processor or decoder, or a sequence of them. Multiplies `growth` by the factor by which
/// it may lengthen a text.
fn check_step(step: &Value, growth: &mut usize) -> Result<(), String> {
    for list in ["normalizers", "pretokenizers", "processors", "decoders"] {
        for step in step[list].as_array().into_iter().flatten() {
            check_step(step, growth)?;
        }
    }
    match step["precompiled_charsmap"].as_str() {
        Some(table) => *growth = growth.saturating_mul(longest_replacement(table)?),
        None if step["type"] == "Precompiled" => {
            return Err("\"precompiled_charsmap\" is missing or not a string".to_owned());
        }
        None => {}
    }
    if step["length"] == 0 {
        return Err("\"length\" is 0; it must be at least 1".to_owned());
    }
    if step["stop"].as_u64().is_some_and(|stop| stop > 0) {
        return Err(format!("\"stop\" is {}; only 0 is supported", step["stop"]));
    }
    if let Some(pattern) = step["pattern"]["Regex"].as_str().filter(|pattern| has_nested_repetition(pattern)) {
        return Err(format!("the pattern {pattern:?} has nested repetitions, which may need exponential time"));
    }
    let length = |text: &Value| text.as_str().map_or(1, |text| text.len().max(1));
    let longer = length(&step["content"]).div_ceil(length(&step["pattern"]["String"]));
    *growth = growth.saturating_mul(longer).saturating_mul(length(&step["prepend"]));
    if *growth > MAX_GROWTH {
        return Err(format!("its replacements may make a text more than {MAX_GROWTH} times as long"));
    }
    Ok(())
}

/// The length in bytes of the longest replacement in a `precompiled_charsmap` of `SentencePiece`. Its layout is: size of the trie
/// (u32), the trie, then the replacements, each terminated by a zero byte.
fn longest_replacement(table: &str) -> Result<usize, String> {
    let bytes = BASE64_STANDARD.decode(table).map_err(|e| format!("\"precompiled_charsmap\" is not base64: {e}"))?;
    let (size, rest) = bytes.split_first_chunk::<4>().ok_or("\"precompiled_charsmap\" has no size")?;
    let size = u32::from_le_bytes(*size) as usize / 4 * 4;
    let (trie, texts) = rest.split_at_checked(size).ok_or("\"precompiled_charsmap\" ends inside its trie")?;
    let trie: Vec<u32> = trie.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
    let texts =
        str::from_utf8(texts).map_err(|e| format!("\"precompiled_charsmap\" has no UTF-8 text after its trie: {e}"))?;
    check_trie(&trie, texts).ok_or("the trie of \"precompiled_charsmap\" has a link out of bounds")?;
    Ok(texts.split('\0').map(str::len).max().unwrap_or(1).max(1))
}

/// Checks that every path through the trie stays within bounds and ends at the start of a replacement in `texts`; `None` if not.
///
/// The trie is a double array (Aoe 1989, "An Efficient Digital Search Algorithm by Using a Double-Array Structure"): the child of
/// a node for byte `c` is unit `base ^ c`, if the low byte of that unit is `c`; the other bits of the unit give the offset of its
/// own base. A node that ends a key has the offset of its replacement at its base.
fn check_trie(trie: &[u32], texts: &str) -> Option<()> {
    let base_of = |at: usize, unit: u32| at ^ ((unit >> 10) << ((unit & 1 << 9) >> 6)) as usize;
    let mut visited = vec![false; trie.len()];
    let mut bases = vec![base_of(0, *trie.first()?)];
    while let Some(base) = bases.pop() {
        if std::mem::replace(visited.get_mut(base)?, true) {
            continue;
        }
        for byte in 1..=0xff {
            let at = base ^ byte as usize;
            let unit = *trie.get(at)?;
            if unit & (1 << 31 | 0xff) != byte {
                continue;
            }
            let base = base_of(at, unit);
            if unit & 1 << 8 != 0 {
                let text = trie.get(base)? & !(1 << 31);
                texts.get(text as usize..)?;
            }
            bases.push(base);
        }
    }
    Some(())
}

/// Whether a regular expression repeats a group that contains an unbounded repetition, as in `(a*)*`. Such an expression may
/// backtrack for exponential time.
fn has_nested_repetition(pattern: &str) -> bool {
    let mut chars = pattern.chars().peekable();
    // For each open group whether it contains a repetition; the number of open character classes.
    let (mut groups, mut classes) = (vec![false], 0);
    while let Some(c) = chars.next() {
        let mut closed = false;
        match c {
            '\\' => drop(chars.next()),
            '[' => classes += 1,
            ']' if classes > 0 => classes -= 1,
            _ if classes > 0 => continue,
            '(' => groups.push(false),
            ')' => closed = groups.len() > 1 && groups.pop().unwrap_or(false),
            _ => {}
        }
        if classes > 0 || c == '(' {
            continue;
        }
        let repeated = match chars.peek() {
            Some('*' | '+') => true,
            Some('{') => chars.clone().take_while(|c| *c != '}').any(|c| c == ','),
            _ => false,
        };
        let Some(outer) = groups.last_mut() else { return false };
        if repeated && closed {
            return true;
        }
        *outer |= repeated || closed;
    }
    false
}

/// Runs a function of the `tokenizers` crate and converts a panic into an error.
pub(crate) fn catch_panic<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    // Unwind safe: the only shared state is a cache of words in a lock, and the crate skips a poisoned lock.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let message = |panic: &dyn Any| match panic.downcast_ref::<String>() {
            Some(text) => text.clone(),
            None => panic.downcast_ref::<&str>().copied().unwrap_or("no reason given").to_owned(),
        };
        Err(format!("the tokenizers crate panicked: {}", message(&*panic)).into())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn input_on_which_the_crate_panics_is_an_error() {
        let with = |key: &str, value: Value| check(&json!({"model": {"type": "BPE"}, key: value})).unwrap_err();
        let merges = |merges: Value, prefix: &str| {
            let model = json!({"vocab": {"a": 0, "#b": 1}, "merges": merges, "continuing_subword_prefix": prefix});
            check(&json!({"model": model}))
        };
        assert_eq!(merges(json!(["a #b", ["a", "#b"]]), "#"), Ok(()));
        assert!(merges(json!(["a #b"]), "").unwrap_err().contains("longer than any"));
        assert!(merges(json!([["a", "a"]]), "#").unwrap_err().contains("does not have the prefix"));
        let steps = |steps: Vec<Value>| json!({"type": "Sequence", "normalizers": steps});
        let table =
            |bytes: &[u8]| json!({"type": "Precompiled", "precompiled_charsmap": BASE64_STANDARD.encode(bytes)});
        let texts = [&[0; 1][..], &[b'a'; 200], "\0é\0".as_bytes()].concat();
        // A trie of 512 units with the key `a`. Its base is unit 256, which contains the offset of the replacement.
        let trie = |offset: u32| {
            let mut units = [0u32; 512];
            units[usize::from(b'a')] = (256 ^ u32::from(b'a')) << 10 | 1 << 8 | u32::from(b'a');
            units[256] = offset;
            units.iter().flat_map(|unit| unit.to_le_bytes()).collect::<Vec<u8>>()
        };
        let with_trie = |trie: &[u8]| [&(trie.len() as u32).to_le_bytes(), trie, &texts].concat();
        let of_200 = with_trie(&trie(1));
        let once = json!({"model": {"type": "Unigram"}, "normalizer": table(&of_200)});
        assert_eq!(check(&once), Ok(()));
        assert!(with("normalizer", steps(vec![table(&of_200); 2])).contains("1024 times"));
        assert!(with("normalizer", table(&[9, 0, 0, 0, 1])).contains("inside its trie"));
        assert!(with("normalizer", steps(vec![json!({"type": "Precompiled"})])).contains("missing"));
        // No units; too few units; no base; an offset inside a character; an offset after the last replacement.
        for trie in [&[][..], &[0; 4], &trie(1)[..4 * 256], &trie(203), &trie(206)] {
            assert!(with("normalizer", table(&with_trie(trie))).contains("out of bounds"));
        }
        assert_eq!(check(&json!({"model": {}, "normalizer": table(&with_trie(&trie(205)))})), Ok(()));
        let ids = |last: u64| {
            let added = json!([{"id": last, "content": "<mask>"}]);
            check(&json!({"model": {"vocab": vec![json!(["a", 0.]); 70_000]}, "added_tokens": added}))
        };
        assert!(ids(70_000) == Ok(()) && ids(1_000_000).unwrap_err().contains("1000000"));
        let twice = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
        assert!(with("normalizer", steps(vec![twice; 30])).contains("1024 times"));
        assert!(with("pre_tokenizer", json!({"type": "FixedLength", "length": 0})).contains("\"length\" is 0"));
        let strip = json!({"type": "Strip", "content": "a", "start": 0, "stop": 1});
        assert!(with("decoder", strip).starts_with("\"decoder\": \"stop\" is 1"));
        let split = json!({"type": "Split", "pattern": {"Regex": "(a*)*"}});
        assert!(with("pre_tokenizer", split).contains("(a*)*"));
    }

    #[test]
    fn nested_repetitions_are_detected_and_common_patterns_accepted() {
        for pattern in ["(a*)*", "(?:a+)+b", "((a|b+)c)*", "(a{2,}){3,}", r"(\(+)+"] {
            assert!(has_nested_repetition(pattern), "{pattern}");
        }
        let in_use = [
            r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}]*[\p{Ll}\p{Lm}]+(?i:'s|'t|'re)?|\s*[\r\n]+",
            r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))",
            r"[!-/:-~&&[^'(+*)]][A-Za-z]+|(?:a\*)*",
        ];
        for pattern in in_use {
            assert!(!has_nested_repetition(pattern), "{pattern}");
        }
    }

    #[test]
    fn a_panic_is_an_error() {
        let error = catch_panic::<()>(|| panic!("at {}", 3)).unwrap_err();
        assert_eq!(error.to_string(), "the tokenizers crate panicked: at 3");
        assert_eq!(catch_panic(|| Ok(2)).unwrap(), 2);
    }
}
