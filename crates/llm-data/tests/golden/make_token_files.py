"""Writes the golden token files of tests/token_files.rs with numpy, after the descriptions of the formats in docs/data.md.

    python crates/llm-data/tests/golden/make_token_files.py
"""

import itertools
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SEPARATOR = 0
DOCUMENTS = [[5, 6, 7], [8], [9, 10, 11, 12, 299]]
# Documents of several sequences, as of a preprocessing by sentences; the separator ends the last one.
SEQUENCES = [[[5, 6], [7, SEPARATOR]], [[8, SEPARATOR]], [[9, 10, 11], [12], [299, SEPARATOR]]]


def llm_c(name, documents, magic, version, dtype):
    ids = list(itertools.chain.from_iterable([SEPARATOR, *document] for document in documents))
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(ids)
    (HERE / name).write_bytes(header.tobytes() + np.array(ids, dtype=dtype).tobytes())


def megatron(prefix, documents, code, dtype):
    """`documents` are lists of sequences."""
    sequences = [np.array(ids, dtype=dtype) for ids in itertools.chain.from_iterable(documents)]
    lengths = np.array([len(ids) for ids in sequences], dtype="<i4")
    sizes = lengths.astype("<i8") * np.dtype(dtype).itemsize
    pointers = np.cumsum(sizes) - sizes
    boundaries = np.cumsum([0] + [len(document) for document in documents])
    index = b"MMIDIDX\x00\x00" + np.array([1], "<u8").tobytes() + np.array([code], "u1").tobytes()
    index += np.array([len(sequences), len(boundaries)], "<u8").tobytes()
    index += lengths.tobytes() + pointers.astype("<i8").tobytes() + boundaries.astype("<i8").tobytes()
    (HERE / f"{prefix}.idx").write_bytes(index)
    (HERE / f"{prefix}.bin").write_bytes(b"".join(ids.tobytes() for ids in sequences))


llm_c("gpt2.bin", DOCUMENTS, 20240520, 1, "<u2")
llm_c("llama3.bin", [*DOCUMENTS, [70000, 128255]], 20240801, 7, "<u4")
megatron("megatron-u16", [[[*document, SEPARATOR]] for document in DOCUMENTS], 8, "<u2")
megatron("megatron-sentences", SEQUENCES, 4, "<i4")
