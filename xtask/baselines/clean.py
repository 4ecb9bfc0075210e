"""A corpus with planted near copies, and the speed of rensa on it, beside `llm-train clean`.

    pip install numpy rensa==0.5.0
    python clean.py generate 50000 corpus.jsonl
    python clean.py rensa corpus.jsonl

One document in ten is a copy of an earlier one with one word in 20 changed.
"""

import json
import resource
import sys
import time

import numpy as np


def generate(count, path):
    random = np.random.default_rng(1)
    size = 30000
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(random.choice(letters, size=int(n))) for n in random.integers(2, 9, size=size)])
    # Frequencies as in a language (Zipf).
    shares = 1 / np.arange(1, size + 1) ** 0.9
    cumulative = np.cumsum(shares / shares.sum())

    def text(ids):
        sentences = [" ".join(words[ids[at : at + 12]]).capitalize() + "." for at in range(0, len(ids), 12)]
        return "\n".join(" ".join(sentences[at : at + 5]) for at in range(0, len(sentences), 5))

    originals, copies = [], 0
    with open(path, "w") as out:
        for index in range(count):
            if index % 10 == 9:
                ids = originals[random.integers(len(originals))].copy()
                at = np.arange(0, len(ids), 20)
                at = np.minimum(at + random.integers(0, 20, size=len(at)), len(ids) - 1)
                ids[at] = random.integers(0, size, size=len(at))
                copies += 1
            else:
                drawn = np.searchsorted(cumulative, random.random(int(random.integers(150, 650))))
                ids = np.minimum(drawn, size - 1)
                if index % 10 == 0:
                    originals = (originals + [ids])[-2000:]
            out.write(json.dumps({"text": text(ids)}) + "\n")
    print(f"{copies} copies in {count} documents")


def rensa(path):
    from rensa import RMinHash, RMinHashLSH

    texts = [json.loads(line)["text"] for line in open(path)]
    start, removed, hashes = time.time(), 0, []
    index = RMinHashLSH(threshold=0.5, num_perm=200, num_bands=40)
    for number, text in enumerate(texts):
        words = text.lower().split()
        own = RMinHash(num_perm=200, seed=1)
        own.update([" ".join(words[at : at + 5]) for at in range(len(words) - 4)])
        removed += any(own.jaccard(hashes[other]) >= 0.5 for other in index.query(own))
        index.insert(number, own)
        hashes.append(own)
    seconds = time.time() - start
    speed = sum(map(len, texts)) / 1e6 / seconds
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"rensa: {removed} removed, {seconds:.1f} s, {speed:.1f} MB/s, {memory:.0f} MB")


if sys.argv[1] == "generate":
    generate(int(sys.argv[2]), sys.argv[3])
else:
    rensa(sys.argv[2])
