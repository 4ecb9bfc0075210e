"""Writes `blocks.txt`: a line for each format, with random blocks and the weights that the `gguf` package (0.19) reads from them,
both as hexadecimal bytes.

    pip install gguf
    python make_blocks.py
"""

import pathlib

import gguf
import numpy as np

# Name, number of blocks, bytes of a block, offsets of its f16 numbers.
FORMATS = [
    ("Q8_0", 2, 34, [0]), ("Q4_0", 2, 18, [0]), ("Q4_K", 1, 144, [0, 2]), ("Q6_K", 1, 210, [208]),
    ("Q4_1", 2, 20, [0, 2]), ("Q5_0", 2, 22, [0]), ("Q5_1", 2, 24, [0, 2]), ("Q2_K", 1, 84, [80, 82]),
    ("Q3_K", 1, 110, [108]), ("Q5_K", 1, 176, [0, 2]), ("IQ4_NL", 2, 18, [0]),
]

random = np.random.default_rng(1)
lines = []
for name, count, size, numbers in FORMATS:
    blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
    for at in numbers:
        blocks[:, at:at + 2] = random.normal(size=(count, 1)).astype(np.float16).view(np.uint8)
    weights = gguf.quants.dequantize(blocks.reshape(1, -1), gguf.GGMLQuantizationType[name])
    lines.append(f"{name} {blocks.tobytes().hex()} {weights.astype('<f4').tobytes().hex()}\n")
(pathlib.Path(__file__).parent / "blocks.txt").write_text("".join(lines))
