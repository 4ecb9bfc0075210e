//! transformers reads the folders of trained tokenizers with the same ids.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::PathBuf;
use std::process::Command;

use llm_tokenizer::{Kind, Split, Tokenizer, TrainSettings, Trainer};

const CORPUS: &str = include_str!("golden/bpe/corpus.en");
const SCRIPT: &str = "\
import json, sys
from transformers import PreTrainedTokenizerFast
tokenizer = PreTrainedTokenizerFast.from_pretrained(sys.argv[1])
texts = json.loads(sys.argv[2])
chat = [{'role': 'user', 'content': 'The man'}]
prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
print(json.dumps([ids, prompt, tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)]))
";

#[test]
fn transformers_reads_trained_tokenizers_with_the_same_ids() {
    let Some(python) = std::env::var_os("LLM_TRAIN_PYTHON") else {
        eprintln!("skipped: LLM_TRAIN_PYTHON names no Python interpreter with transformers");
        return;
    };
    let texts = ["The man said: 12345 words!", "  if x:\n\n\ty = 'é日本'", "", "Understanding isn't WORSE"];
    let splits = Split::ALL.into_iter().map(|(name, split)| (name, Kind::Bpe, split));
    let kinds = Kind::ALL.into_iter().map(|(name, kind)| (name, kind, Split::Gpt2));
    for (name, kind, split) in splits.chain(kinds) {
        let settings = TrainSettings { kind, split, vocab_size: 600, ..TrainSettings::default() };
        let mut trainer = Trainer::new(&settings).unwrap();
        trainer.add(&CORPUS[..50_000], &PathBuf::new().into());
        let tokenizer: Tokenizer = trainer.finish().unwrap().0.with_default_chat_template().unwrap();
        let dir = tempfile::tempdir().unwrap();
        tokenizer.save(dir.path()).unwrap();
        let texts_json = serde_json::to_string(&texts).unwrap();
        let mut command = Command::new(&python);
        let output = command.args(["-c", SCRIPT]).arg(dir.path()).arg(texts_json).output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let ids: Vec<Vec<u32>> = texts.iter().map(|text| tokenizer.encode(text).unwrap()).collect();
        let prompt = tokenizer.render_chat(&[llm_tokenizer::ChatMessage::new("user", "The man")], true).unwrap();
        let expected = serde_json::json!([ids, prompt, tokenizer.eos_id(), tokenizer.pad_id(), tokenizer.vocab_size()]);
        assert_eq!(found, expected, "{name}");
    }
}
