"""Writes two unigram models and `unigram.json`, the ids that the sentencepiece package (0.2) gives, with settings as those of T5
(a table of replacements, no byte fallback) and of Llama (no normalisation, byte fallback, a user-defined symbol).

Usage: python make_unigram.py TEXT, where TEXT is an English text file of a few hundred kilobytes (Tiny Shakespeare was used).
"""

import io
import json
import pathlib
import sys
import tempfile

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
    "no-break\u00a0space, em\u2003space, ideographic\u3000space, zero\u200bwidth",
    "caf\u00e9 na\u00efve \u732b\u3068\u72ac \ud55c\uad6d\uc5b4 \U0001f408 \U0001f469\u200d\U0001f469\u200d\U0001f467 e\u0301",
    "\uff34\uff48\uff45 \uff4b\uff49\uff4e\uff47 \ufb01nds \u2460\u00bd",
    "aaaaaaaaaa bbbbbbbbbb",
]
# A part of the rules of nmt_nfkc, whose whole table has 240 kB.
RULES = {"\t": " ", "\n": " ", "\r": " ", "\u00a0": " ", "\u2003": " ", "\u3000": " ", "\u200b": "", "\ufb01": "fi", "\u2460": "1",
         "\u00bd": "1\u20442", "e\u0301": "\u00e9"}
RULES |= {chr(0xFF01 + i): chr(0x21 + i) for i in range(94)}


def train(name, **settings):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(pathlib.Path(sys.argv[1]).read_text().splitlines()[:4000]),
        model_writer=model, model_type="unigram", **settings)
    (HERE / f"{name}.model").write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [{"text": text, "ids": processor.encode(text), "decoded": processor.decode(processor.encode(text))} for text in TEXTS]


with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
    code = lambda text: " ".join(f"{ord(c):X}" for c in text)
    rules.write("".join(f"{code(a)}\t{code(b)}\n" for a, b in RULES.items()))
    rules.flush()
    expected = {"unigram_table": train("unigram_table", vocab_size=400, bos_id=-1, pad_id=0, eos_id=1, unk_id=2,
                                       normalization_rule_tsv=rules.name)}
expected["unigram_plain"] = train("unigram_plain", vocab_size=700, byte_fallback=True, split_digits=True,
                                  normalization_rule_name="identity", remove_extra_whitespaces=False,
                                  user_defined_symbols=["<turn>"])
(HERE / "unigram.json").write_text(json.dumps(expected, indent=1) + "\n")
