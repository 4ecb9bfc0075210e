"""Writes filters.jsonl: documents near the thresholds of the rules of quality, and what datatrove 0.10.1 does with them.

    pip install datatrove==0.10.1 regex uniseg
    python make_filters.py

datatrove counts words and sentences by spaCy. Here it counts those between the boundaries of UAX #29 (uniseg), as this crate does, so
that the rules are compared and not the splitters. Replacement addresses are those of this crate.
"""

import json
import random
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.utils import word_tokenizers
from datatrove.utils.text import simplify_text
from uniseg.sentencebreak import sentences
from uniseg.wordbreak import words


class Boundaries(word_tokenizers.WordTokenizer):
    def word_tokenize(self, text):
        return word_tokenizers.strip_strings(list(words(text)))

    def sent_tokenize(self, text):
        return word_tokenizers.strip_strings(list(sentences(text)))

    def span_tokenize(self, text):
        spans, start = [], 0
        for part in sentences(text):
            spans.append((start, start + len(part)))
            start += len(part)
        return spans


word_tokenizers.load_word_tokenizer = lambda language: Boundaries(language)

random.seed(1)
VOCABULARY = (
    "the of and to a in that is was he for it with as his on be at by had not are but from or have an they which one "
    "were all her she there would their we him been has when who will no more if out so up said what its about than "
    "into them can only other time new some could these two may first then do any like my now over such our man even "
    "most made after also well did many before must years back through much where your way down should because long "
    "water river mountain garden window letter morning evening history science village market teacher weather island"
).split()


def sentence(count=None, end="."):
    count = count or random.randint(4, 14)
    return " ".join(random.choice(VOCABULARY) for _ in range(count)).capitalize() + end


def prose(sentences=12, lines=3):
    return "\n".join(" ".join(sentence() for _ in range(sentences // lines)) for _ in range(lines))


documents = ["", " \n ", "One.", "...", "café Ünïcode 你好。世界！ Это пример. यह एक वाक्य है।"]
documents += [prose(random.randint(3, 40), random.randint(1, 5)) for _ in range(12)]
# Each list is a scale on which a rule changes its mind.
for n in range(48, 53):
    documents.append(" ".join(random.choice(VOCABULARY) for _ in range(n)) + " .")
for n in range(4, 30, 3):
    words_ = [random.choice(VOCABULARY) for _ in range(70)]
    documents.append(" ".join(words_ + ["#"] * n) + ".")
    documents.append(" ".join(words_ + ["well..."] * n) + ".")
    documents.append(" ".join(words_ + [str(i * 37) for i in range(n)]) + ".")
    documents.append(" ".join(["a"] * (n * 5) + words_[:40]) + ".")
    documents.append(" ".join(["internationalisation"] * n + words_) + ".")
for n in range(0, 21, 2):
    bullets = [("- " if i < n else "") + sentence(8) for i in range(20)]
    documents.append("\n".join(bullets))
    documents.append("\n".join(sentence(8, "..." if i < n else ".") for i in range(20)))
    documents.append("\n".join(sentence(8, "" if i < n else ".") for i in range(20)))
    documents.append("\n".join(sentence(3 if i < n else 12) for i in range(20)))
    same = sentence(9)
    documents.append("\n".join(same if i < n else sentence(9) for i in range(20)))
    documents.append("\n\n".join(same if i < n else sentence(9) for i in range(20)))
    documents.append("\n".join(sentence(12) for _ in range(18)) + "\n" + sentence(n + 1) + "\n" + sentence(n + 1))
for n in range(0, 30, 2):
    phrase = " ".join(random.choice(VOCABULARY) for _ in range(10))
    mixed = [phrase if random.random() < n / 60 else sentence(8) for _ in range(30)]
    documents.append(" ".join(mixed))
    pair = random.choice(["so much", "over the river", "one of the most"])
    documents.append(" ".join([sentence(6)] + [pair + " " + random.choice(VOCABULARY) for _ in range(n)] + [prose(10)]))
    documents.append(prose(9, 3) + "\n" * (3 * n + 1) + prose(9, 3))
for extra in [
    "Please enable JavaScript in the browser.",
    "Lorem ipsum dolor sit amet today.",
    "We wrote { in the text here.",
    "Read our Privacy Policy before you go.",
    "This site uses cookies to work.",
    "It is well known [1] that [citation needed] rivers flow [edit] down [12] and [a].",
    "Short line.",
    "A line without an end of sentence",
    "It goes on and on...",
    "He said 'no way'",
    'She said "not at all"',
    "x" * 1001 + " is too long.",
    "x" * 1000 + " is not too long.",
    "A line with a form feed\x0cand another part.",
    "Carriage\rreturn here now.",
    "A separator\u2028in the line here.",
]:
    documents.append(prose(8, 2) + "\n" + extra + "\n" + prose(3, 1))
for n in range(1, 8):
    documents.append(" ".join(sentence(6) for _ in range(n)))
addresses = [
    "Write to jane.doe+news@mail.example.co.uk or bob@site.org, not to @nobody or x@y.",
    "Servers 8.8.8.8, 10.0.0.1, 192.168.1.1, 127.0.0.1, 1.2.3.4.5, 999.1.1.1, 01.2.3.4, 100.64.0.1, 172.15.0.1, 172.16.0.1.",
    "a@b.de c@d.com e@f.net 1.1.1.1 9.9.9.9 4.4.4.4 5.5.5.5 v1.2.3.4 x1.2.3.4y 192.0.0.9 224.0.0.1 240.0.0.1",
    "user@[8.8.8.8] and name@sub-domain.example.museum. End.mail@host.org. Ünï@host.org ;q@host.org",
    "256.1.1.1 255.255.255.255 198.18.0.1 198.20.0.1 203.0.113.9 169.254.3.4 0.1.2.3 1234.5.6.7 12.34.56.789",
]
documents += addresses


def result(rule, text):
    document = Document(text=text, id="0")
    kept = rule.filter(document)
    reason = None
    if isinstance(kept, tuple):
        kept, reason = kept
    return (document.text if kept else None), reason


with open(Path(__file__).with_name("filters.jsonl"), "w") as out:
    for text in documents:
        # What does not change is left out, to keep the file small.
        row = {"text": text}
        if len(text) < 300:
            row["simple"] = simplify_text(text)
        if text.strip():
            for name, rule in [
                ("gopher_quality", GopherQualityFilter()),
                ("gopher_repetition", GopherRepetitionFilter()),
                ("c4", C4QualityFilter()),
                ("c4_fineweb", C4QualityFilter(filter_no_terminal_punct=False)),
                ("fineweb", FineWebQualityFilter()),
            ]:
                changed, reason = result(rule, text)
                row[name] = {"text": changed} if name.startswith("c4") and reason is None and changed != text else reason
        pii = PIIFormatter(ip_replacement=("192.0.2.1", "198.51.100.1", "203.0.113.1"))
        scrubbed = pii.format(text)
        if scrubbed != text:
            row["addresses"] = scrubbed
        out.write(json.dumps(row, ensure_ascii=False) + "\n")
