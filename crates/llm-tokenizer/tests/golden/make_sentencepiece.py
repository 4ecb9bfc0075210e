"""Writes tokenizer.model and expected.json with the sentencepiece package (0.2), with the settings of Llama 1 and 2.

Usage: python make_sentencepiece.py TEXT, where TEXT is an English text file of a few hundred kilobytes (Tiny Shakespeare was
used).
"""

import io
import json
import pathlib
import sys

import sentencepiece

HERE = pathlib.Path(__file__).parent
TEXTS = [
    "",
    " ",
    "the king",
    "  two spaces  and   three ",
    "O Romeo, Romeo! wherefore art thou Romeo?",
    "1597 and 2024",
    "tabs\tand\nnew lines\r\n",
    "caf\u00e9 na\u00efve \u732b \U0001f408 e\u0301",
    "aaaaaaaaaa bbbbbbbbbb",
]

model = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(pathlib.Path(sys.argv[1]).read_text().splitlines()[:4000]),
    model_writer=model,
    model_type="bpe",
    vocab_size=500,
    byte_fallback=True,
    split_digits=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    allow_whitespace_only_pieces=True,
)
processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
(HERE / "tokenizer.model").write_bytes(model.getvalue())
expected = [{"text": text, "ids": processor.encode(text)} for text in TEXTS]
(HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
