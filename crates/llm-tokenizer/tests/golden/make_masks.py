"""Writes the ids and assistant masks of transformers: `python make_masks.py TOKENIZER_FOLDER TEMPLATE.jinja...`.

For each template with {% generation %} and each conversation of conversations.json and of the built-in list below,
TOKENIZER_FOLDER/expected_masks.json gets {"template", "conversation", "ids", "mask"}. tests/templates.rs compares if CHAT_MASKS names the folder.
Written with transformers 5.24.
"""

import json
import sys
from pathlib import Path

from transformers import PreTrainedTokenizerFast

folder = Path(sys.argv[1])
config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
tokenizer = PreTrainedTokenizerFast(
    tokenizer_file=str(folder / "tokenizer.json"), eos_token=config["eos_token"], pad_token=config.get("pad_token")
)
conversations = json.loads((Path(__file__).parent / "conversations.json").read_text(encoding="utf-8"))
call = {"type": "function", "function": {"name": "get_weather", "arguments": {"place": "Zürich"}}}
conversations.append(
    {
        "name": "three turns with thinking and tools",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is 2 + 2?"},
            {"role": "assistant", "reasoning_content": "Two and two are four.", "content": "4."},
            {"role": "user", "content": "And the weather in Zürich?"},
            {"role": "assistant", "reasoning_content": "I need the tool.", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": "get_weather", "content": "{\"temperature\": 20.5}"},
            {"role": "assistant", "reasoning_content": "20.5 it is.", "content": "20.5 °C."},
            {"role": "user", "content": "Thanks!"},
            {"role": "assistant", "content": "You are welcome. 🐈"},
        ],
        "tools": conversations[2]["tools"],
    }
)
expected = []
for path in map(Path, sys.argv[2:]):
    template = path.read_bytes().decode("utf-8")
    for conversation in conversations:
        if conversation.get("continue_final_message") or conversation.get("add_generation_prompt"):
            continue
        try:
            encoded = tokenizer.apply_chat_template(
                conversation["messages"], tools=conversation.get("tools"), chat_template=template, return_dict=True, return_assistant_tokens_mask=True
            )
        except Exception as error:
            print(f"{path.name}, {conversation['name']}: {type(error).__name__}: {error}")
            continue
        chat = {key: conversation[key] for key in ("messages", "tools") if key in conversation}
        expected.append(
            {"template": template, "name": f"{path.name}, {conversation['name']}", "chat": chat, "ids": encoded["input_ids"], "mask": encoded["assistant_masks"]}
        )
(folder / "expected_masks.json").write_text(json.dumps(expected, ensure_ascii=False) + "\n", encoding="utf-8")
print(len(expected), "masks")
