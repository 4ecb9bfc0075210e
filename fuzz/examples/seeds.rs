//! Writes the seed corpus of each fuzz target to `corpus/`: small valid files of every kind that the loaders read.
//!
//! `cargo +nightly run --example seeds`, in this folder.

use std::fs;
use std::path::{Path, PathBuf};

use llm_kernels::BlockFormat;
use llm_model::gguf::{Metadata, Value};
use llm_model::{Head, LoraConfig, Model, ModelConfig, ModelType, WeightDtype};
use serde_json::{Value as Json, json};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let tokenizers = corpus("tokenizer_json")?;
    for (i, json) in tokenizer_jsons().iter().enumerate() {
        fs::write(tokenizers.join(format!("{i}.json")), json.to_string())?;
    }
    fs::write(corpus("tokenizer_model")?.join("pieces.model"), pieces())?;
    adapters()?;
    models()
}

fn corpus(target: &str) -> std::io::Result<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// One file per kind of adapter: its configuration on the first line, then its tensors.
fn adapters() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::temp_dir().join("llm-fuzz").join("adapter");
    for (name, use_rslora, use_dora) in [("lora", false, false), ("rslora", true, false), ("dora", false, true)] {
        let lora = LoraConfig { r: 2, use_rslora, use_dora, ..LoraConfig::default() };
        llm_fuzz::tiny(ModelType::ALL[0]).with_lora(&lora, 1)?.save_adapter(&dir, "base")?;
        let config: Json = serde_json::from_slice(&fs::read(dir.join("adapter_config.json"))?)?;
        let tensors = fs::read(dir.join("adapter_model.safetensors"))?;
        fs::write(corpus("adapter")?.join(name), [format!("{config}\n").as_bytes(), &tensors].concat())?;
    }
    Ok(())
}

/// Each family as a Hugging Face folder and as a GGUF file, and the `config.json` of the golden checkpoints, which have
/// more keys.
fn models() -> Result<(), Box<dyn std::error::Error>> {
    let (configs, weights, ggufs) = (corpus("config_json")?, corpus("safetensors")?, corpus("gguf")?);
    for family in ModelType::ALL {
        let (name, dir) = (family.name(), llm_fuzz::tiny_folder(family));
        fs::copy(dir.join("config.json"), configs.join(format!("{name}.json")))?;
        if ["llama", "gpt2", "gpt_neox"].contains(&name.as_str()) {
            fs::copy(dir.join("model.safetensors"), weights.join(format!("{name}.safetensors")))?;
        }
        for (kind, tokenizer) in [(WeightDtype::F32, byte_level()), (WeightDtype::F16, sentence_piece())] {
            let path = ggufs.join(format!("{name}_{kind:?}.gguf"));
            let _ = fs::remove_file(&path);
            llm_fuzz::tiny(family).save_gguf(&path, Some(kind), tokenizer)?;
        }
    }
    let wide = ModelConfig { hidden_size: 32, ..llm_fuzz::tiny(ModelType::ALL[0]).config().clone() };
    let wide = Model::init(ModelConfig { head_dim: 16, ..wide }, Head::LanguageModel, 1)?.frozen()?;
    for format in [BlockFormat::Q8_0, BlockFormat::Q4_0] {
        let path = ggufs.join(format!("llama_{format:?}.gguf"));
        let _ = fs::remove_file(&path);
        wide.save_gguf(&path, Some(WeightDtype::Quantized(format)), byte_level())?;
    }
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/llm-model/tests/golden");
    for folder in fs::read_dir(golden.join("families"))?.chain(fs::read_dir(&golden)?) {
        let folder = folder?;
        if folder.path().join("config.json").is_file() {
            let name = folder.file_name().display().to_string();
            fs::copy(folder.path().join("config.json"), configs.join(format!("golden_{name}.json")))?;
        }
    }
    Ok(())
}

fn tokenizer_keys(model: &str, tokens: &[&str]) -> Metadata {
    let mut keys = Metadata::new();
    let mut put = |key: &str, value| keys.insert(format!("tokenizer.ggml.{key}"), value);
    put("model", Value::Text(model.to_owned()));
    put("tokens", Value::Texts(tokens.iter().map(|&token| token.to_owned()).collect()));
    put(
        "token_type",
        Value::Integers(tokens.iter().map(|token| if token.starts_with("<s") { 3 } else { 1 }).collect()),
    );
    put("bos_token_id", Value::Unsigned(0));
    put("eos_token_id", Value::Unsigned(0));
    keys
}

fn byte_level() -> Metadata {
    let mut keys = tokenizer_keys("gpt2", &["<s>", "a", "t", "e", "at", "ate", "\u{120}", "x"]);
    keys.insert("tokenizer.ggml.pre".to_owned(), Value::Text("gpt-2".to_owned()));
    keys.insert("tokenizer.ggml.merges".to_owned(), Value::Texts(vec!["a t".to_owned(), "at e".to_owned()]));
    keys.insert("tokenizer.chat_template".to_owned(), Value::Text("{{ messages[0]['content'] }}".to_owned()));
    keys
}

fn sentence_piece() -> Metadata {
    let mut keys = tokenizer_keys("llama", &["<s>", "<0x0A>", "t", "e", "te", "\u{2581}", "\u{2581}te", "x"]);
    keys.insert("tokenizer.ggml.scores".to_owned(), Value::Floats(vec![0., 0., -9., -9., -1., -9., -2., -9.]));
    keys.insert("tokenizer.ggml.add_space_prefix".to_owned(), Value::Bool(true));
    keys
}

/// A `tokenizer.json` for each model type; together they use each kind of normalizer, pre-tokenizer, post-processor and
/// decoder.
fn tokenizer_jsons() -> Vec<Json> {
    let special = |id: usize, text: &str| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": true, "rstrip": false, "normalized": false,
            "special": true})
    };
    let template = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [0],
        "tokens": ["<s>"]}}});
    let bpe = json!({"type": "BPE", "dropout": null, "unk_token": null, "byte_fallback": false, "ignore_merges": false,
        "vocab": {"<s>": 0, "a": 1, "t": 2, "e": 3, "at": 4, "\u{120}": 5}, "merges": [["a", "t"]]});
    let fallback = json!({"type": "BPE", "unk_token": "<s>", "byte_fallback": true, "fuse_unk": true,
        "continuing_subword_prefix": "#", "end_of_word_suffix": "$",
        "vocab": {"<s>": 0, "<0xC3>": 1, "\u{2581}": 2, "a": 3, "#t": 4, "at": 5, "x$": 6}, "merges": ["a #t"]});
    let piece = json!({"type": "WordPiece", "unk_token": "<s>", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": {"<s>": 0, "a": 1, "te": 2, "##x": 3, "##t": 4}});
    let word = json!({"type": "WordLevel", "unk_token": "<s>", "vocab": {"<s>": 0, "a": 1, "text": 2}});
    let unigram = json!({"type": "Unigram", "unk_id": 0, "byte_fallback": false,
        "vocab": [["<s>", 0.0], ["\u{2581}", -1.5], ["a", -2.0], ["te", -2.5], ["xt", -3.0]]});
    let one = |kind: &str| json!({"type": kind});
    let many = |kind: &str, list: &str, steps: Vec<Json>| json!({"type": kind, list: steps});
    let split = |pattern: Json, behavior: &str| json!({"type": "Split", "pattern": pattern, "behavior": behavior, "invert": false});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let space = json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true});
    let replace = json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "});
    let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    let all = [
        (bpe.clone(), one("NFC"), bytes.clone(), bytes.clone(), bytes.clone()),
        (
            fallback,
            many("Sequence", "normalizers", vec![json!({"type": "Prepend", "prepend": "\u{2581}"}), replace.clone()]),
            split(json!({"String": " "}), "MergedWithPrevious"),
            template.clone(),
            many("Sequence", "decoders", vec![replace.clone(), one("ByteFallback"), one("Fuse"), strip]),
        ),
        (
            piece,
            json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
                "lowercase": true}),
            one("BertPreTokenizer"),
            json!({"type": "BertProcessing", "sep": ["<s>", 0], "cls": ["<s>", 0]}),
            json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        ),
        (
            word,
            json!({"type": "Replace", "pattern": {"Regex": "[0-9]+"}, "content": "0"}),
            many(
                "Sequence",
                "pretokenizers",
                vec![
                    one("WhitespaceSplit"),
                    json!({"type": "Punctuation", "behavior": "Isolated"}),
                    json!({"type": "Digits", "individual_digits": true}),
                    json!({"type": "FixedLength", "length": 3}),
                ],
            ),
            json!({"type": "RobertaProcessing", "sep": ["<s>", 0], "cls": ["<s>", 0], "trim_offsets": true,
                "add_prefix_space": true}),
            json!({"type": "CTC", "pad_token": "<s>", "word_delimiter_token": "|", "cleanup": true}),
        ),
        (
            unigram,
            many(
                "Sequence",
                "normalizers",
                vec![
                    one("NFKC"),
                    one("Lowercase"),
                    one("StripAccents"),
                    one("Nmt"),
                    json!({"type": "Strip", "strip_left": true, "strip_right": true}),
                ],
            ),
            space.clone(),
            many("Sequence", "processors", vec![template]),
            space,
        ),
        (
            bpe,
            json!({"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAAhAAAA"}),
            many(
                "Sequence",
                "pretokenizers",
                vec![
                    one("UnicodeScripts"),
                    json!({"type": "CharDelimiterSplit", "delimiter": "-"}),
                    split(json!({"Regex": "\\p{L}+|\\s+(?!\\S)"}), "Isolated"),
                ],
            ),
            Json::Null,
            json!({"type": "BPEDecoder", "suffix": "</w>"}),
        ),
    ];
    let file = |(model, normalizer, pre_tokenizer, post_processor, decoder)| {
        json!({"version": "1.0", "added_tokens": [special(0, "<s>"), special(9, "text")], "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer, "post_processor": post_processor, "decoder": decoder, "model": model})
    };
    all.into_iter().map(file).collect()
}

/// A `tokenizer.model`: pieces with score and kind, then the trainer and normalizer settings.
fn pieces() -> Vec<u8> {
    let field = |number: u8, bytes: &[u8]| [&[number << 3 | 2, bytes.len() as u8], bytes].concat();
    let piece = |text: &str, score: f32, kind: u8| {
        let parts = [field(1, text.as_bytes()), [&[21], &score.to_le_bytes()[..]].concat(), vec![24, kind]];
        field(1, &parts.concat())
    };
    let pieces = [
        piece("<unk>", 0., 2),
        piece("<s>", 0., 3),
        piece("</s>", 0., 3),
        piece("<0xC3>", 0., 6),
        piece("t", -9., 1),
        piece("e", -9., 1),
        piece("te", -1., 1),
        piece("\u{2581}", -9., 1),
        piece("\u{2581}te", -2., 1),
    ];
    let (trainer, normalizer) = (field(2, &[24, 2]), field(3, &[24, 1, 32, 0, 40, 1]));
    [pieces.concat(), trainer, normalizer].concat()
}
