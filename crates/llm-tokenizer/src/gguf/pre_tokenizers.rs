//! The pre-tokenizers of llama.cpp, by name.

use serde_json::Value;

use super::unsupported;
use crate::Result;
use crate::split::{GPT2, LLAMA3, QWEN2};

/// The pre-tokenizers: name in llama.cpp, patterns (`digits` splits into single digits), whether merges are ignored if a word is a
/// token (`ignore_merges`), whether text is normalized to Unicode NFC.
///
/// If two entries are equal, the name of the first is written.
pub(super) const PRE_TOKENIZERS: [(&str, &[&str], bool, bool); 7] = [
    ("gpt-2", &[GPT2], false, false),
    ("smollm", &["digits", GPT2], false, false),
    ("llama-bpe", &[LLAMA3], true, false),
    ("dbrx", &[LLAMA3], false, false),
    ("qwen2", &[QWEN2], false, true),
    ("olmo", &[GPT2], false, false),
    ("llama3", &[LLAMA3], true, false),
];

/// The name in llama.cpp of the pre-tokenizer of a byte-level `tokenizer.json`.
pub(super) fn pre_tokenizer_name(json: &Value) -> Result<&'static str> {
    let unknown = |key: &str| {
        let names: Vec<&str> = PRE_TOKENIZERS.iter().map(|(name, ..)| *name).collect();
        let names = names.join(", ");
        unsupported(format!("\"{key}\" of tokenizer.json is {}; supported are those of {names}", json[key]))
    };
    let composed = match &json["normalizer"] {
        Value::Null => false,
        normalizer if normalizer["type"] == "NFC" => true,
        _ => return Err(unknown("normalizer")),
    };
    let (mut patterns, mut bytes) = (Vec::new(), false);
    let one = std::slice::from_ref(&json["pre_tokenizer"]);
    for step in json["pre_tokenizer"]["pretokenizers"].as_array().map_or(one, Vec::as_slice) {
        match step["type"].as_str() {
            Some("Digits") if step["individual_digits"] == true => patterns.push("digits"),
            Some("Split") if step["behavior"] == "Isolated" && step["invert"] == false => {
                patterns.push(step["pattern"]["Regex"].as_str().ok_or_else(|| unknown("pre_tokenizer"))?);
            }
            Some("ByteLevel") if step["add_prefix_space"] == false => {
                bytes = true;
                if step["use_regex"] != false {
                    patterns.push(GPT2);
                }
            }
            _ => return Err(unknown("pre_tokenizer")),
        }
    }
    let whole = json["model"]["ignore_merges"] == true;
    // llama.cpp has no NFC normalization and ignores that of Qwen, so a tokenizer with NFC matches an entry with NFC only, but
    // one without NFC matches any entry.
    let found = PRE_TOKENIZERS.iter().find(|(_, p, w, c)| *p == patterns && *w == whole && (*c || !composed));
    found.filter(|_| bytes).map(|(name, ..)| *name).ok_or_else(|| unknown("pre_tokenizer"))
}
