"""Writes what transformers renders for chat templates: `python make_templates.py FOLDER`.

For each FOLDER/*.jinja and each conversation of conversations.json, FOLDER/expected.json gets the text, or null if the template raises an
error. tests/templates.rs compares. Needs transformers and jinja2 (written with transformers 5.24 and jinja2 3.1.6).
"""

import datetime
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils


class Fixed(datetime.datetime):
    """The date of `strftime_now`."""

    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 5)


chat_template_utils.datetime = Fixed
folder = Path(sys.argv[1])
conversations = json.loads((Path(__file__).parent / "conversations.json").read_text(encoding="utf-8"))
expected, failures = {}, 0
for path in sorted(folder.glob("*.jinja")):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), bos_token="<|endoftext|>", eos_token="<|end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = path.read_bytes().decode("utf-8")
    expected[path.name] = {}
    for conversation in conversations:
        arguments = {key: value for key, value in conversation.items() if key not in ("name", "messages", "chat_template_kwargs")}
        arguments.update(conversation.get("chat_template_kwargs", {}))
        try:
            text = tokenizer.apply_chat_template(conversation["messages"], tokenize=False, **arguments)
        except Exception as error:
            print(f"{path.name}, {conversation['name']}: {type(error).__name__}: {str(error)[:200]}")
            failures += 1
            text = None
        expected[path.name][conversation["name"]] = text
with open(folder / "expected.json", "w", encoding="utf-8") as out:
    json.dump(expected, out, ensure_ascii=False, indent=1)
    out.write("\n")
print(len(expected), "templates,", failures, "errors")
