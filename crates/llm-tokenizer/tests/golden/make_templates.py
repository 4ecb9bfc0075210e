"""Writes what transformers renders for chat templates: `python make_templates.py FOLDER`.

For each FOLDER/*.jinja and each conversation of conversations.json, FOLDER/expected.json gets the text, or null if the template raises an
error; and FOLDER/expected_spans.json the texts inside of {% generation %}. tests/templates.rs compares. Needs transformers and jinja2
(written with transformers 5.24 and jinja2 3.1.6).
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
expected, spans, failures = {}, {}, 0


def generated(tokenizer, conversation, arguments):
    """The texts inside of {% generation %}, which transformers turns into `assistant_masks`."""
    messages = [{key: value for key, value in message.items() if value is not None} for message in conversation["messages"]]
    texts, indices = chat_template_utils.render_jinja_template(
        [messages],
        chat_template=tokenizer.chat_template,
        return_assistant_tokens_mask=True,
        **{**tokenizer.special_tokens_map, **arguments},
    )
    return [texts[0][start:end] for start, end in indices[0]]


for path in sorted(folder.glob("*.jinja")):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), bos_token="<|endoftext|>", eos_token="<|end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = path.read_bytes().decode("utf-8")
    expected[path.name] = {}
    tagged = "generation %}" in tokenizer.chat_template or "generation -%}" in tokenizer.chat_template
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
        if tagged and text is not None and not conversation.get("continue_final_message"):
            spans.setdefault(path.name, {})[conversation["name"]] = generated(tokenizer, conversation, arguments)
for name, content in [("expected.json", expected), ("expected_spans.json", spans)]:
    with open(folder / name, "w", encoding="utf-8") as out:
        json.dump(content, out, ensure_ascii=False, indent=1)
        out.write("\n")
print(len(expected), "templates,", failures, "errors,", len(spans), "with {% generation %}")
