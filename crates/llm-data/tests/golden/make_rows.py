"""Writes the same rows with pyarrow (Parquet: snappy, gzip, none, zstd) and zstd: `python make_rows.py`.

Needs pyarrow and the program zstd. The Rust tests read the files and compare the rows with rows.jsonl.
"""

import json
import pathlib
import subprocess

import pyarrow
import pyarrow.parquet

HERE = pathlib.Path(__file__).parent
CALL = {"id": "a1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
ROWS = [
    {
        "messages": [
            {"role": "user", "content": "What is 1 + 1?", "tool_calls": None},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "2 🐈", "tool_calls": None},
            {"role": "assistant", "content": "Two.", "tool_calls": []},
        ],
        "score": 0.5,
        "count": 3,
        "good": True,
    },
    {"messages": [], "score": None, "count": -4, "good": False},
    {"messages": None, "score": 2.0, "count": None, "good": None},
]

lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
(HERE / "rows.jsonl").write_text(lines)
table = pyarrow.Table.from_pylist(ROWS)
for codec in ["snappy", "gzip", "none", "zstd"]:
    pyarrow.parquet.write_table(table, HERE / f"rows-{codec}.parquet", compression=codec, row_group_size=2)
# Two frames and a skippable frame (RFC 8878, section 3.1.2) between them.
first, rest = lines.split("\n", 1)
frames = [subprocess.run(["zstd", "-c"], input=part.encode(), capture_output=True, check=True).stdout for part in [first + "\n", rest]]
skipped = bytes([0x50, 0x2A, 0x4D, 0x18, 3, 0, 0, 0]) + b"any"
(HERE / "rows.jsonl.zst").write_bytes(frames[0] + skipped + frames[1])
