"""Compares the perplexity of models quantised by us with models quantised by llama.cpp.

    python check_perplexity.py MODEL LLM-INFER TEXT...  # folder of a trained model, our program, UTF-8 texts

Needs gguf and llama-cpp-python. We convert MODEL to f16 and to every quantised format; the quantizer of llama.cpp quantises the
f16 file twice: with the same format for each tensor as ours, and with its default mix (Q4_K_S). llama.cpp computes the perplexity
of all files on the first `WINDOWS` windows of `LENGTH` tokens of each text. Exits with 1 if the relative difference of our q4_k
to one of them is more than `MOST`.

The row lengths of the matrices must be multiples of 256, or the K formats fall back to others. Use a well-trained model:
rounding has little effect on an untrained one.
"""

import ctypes
import pathlib
import subprocess
import sys
import tempfile

import llama_cpp
import numpy as np
from gguf import GGUFReader

WINDOWS, LENGTH = 48, 512
MOST = 0.01
FORMATS = {  # the names of llama_ftype
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q6_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q6_K,
    "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q4_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_S,
}

model, program, texts = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]).resolve(), sys.argv[3:]


def convert(kind, out):
    command = [program, "convert", "--model", str(model), "--to", "gguf", "--quantize", kind, "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def quantize(source, ftype, out, like=None):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = ftype
    if like:
        types = {tensor.name: tensor.tensor_type for tensor in GGUFReader(like).tensors}
        params.pure = True
        params.token_embedding_type = types["token_embd.weight"]
        params.output_tensor_type = types.get("output.weight", types["token_embd.weight"])
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params)) == 0
    if like:
        made = {tensor.name: tensor.tensor_type for tensor in GGUFReader(out).tensors}
        assert made == types, "llama.cpp chose other formats"


def perplexities(path, texts):
    """Of each text, a list of tokens."""
    llama = llama_cpp.Llama(str(path), n_ctx=LENGTH, n_batch=LENGTH, verbose=False, logits_all=True, type_k=0, type_v=0)
    for tokens in texts:
        loss = []
        for start in range(0, min(len(tokens), WINDOWS * LENGTH) - LENGTH + 1, LENGTH):
            window = tokens[start : start + LENGTH]
            llama.reset()
            llama.eval(window)
            logits = np.asarray(llama.scores[: LENGTH - 1], dtype=np.float64)
            logits -= logits.max(-1, keepdims=True)
            loss.append(np.log(np.exp(logits).sum(-1)) - logits[np.arange(LENGTH - 1), window[1:]])
        yield float(np.exp(np.concatenate(loss).mean()))


bad = False
with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    f16 = folder / "f16.gguf"
    convert("f16", f16)
    tokenizer = llama_cpp.Llama(str(f16), vocab_only=True, verbose=False)
    tokens = [tokenizer.tokenize(pathlib.Path(text).read_bytes(), add_bos=False) for text in texts]
    before = list(perplexities(f16, tokens))
    rows = {text: [] for text in texts}
    for kind, ftype in FORMATS.items():
        ours, same, own = (folder / f"{kind}-{name}.gguf" for name in ("ours", "same", "own"))
        convert(kind, ours)
        quantize(f16, ftype, same, like=ours)
        quantize(f16, ftype, own)
        for text, *found in zip(texts, *(perplexities(path, tokens) for path in (ours, same, own))):
            rows[text].append((kind, *found))
            bad |= kind == "q4_k" and any(abs(found[0] / theirs - 1) > MOST for theirs in found[1:])
    for text, count, plain in zip(texts, map(len, tokens), before):
        windows = min(count // LENGTH, WINDOWS)
        print(f"{text}, {windows * (LENGTH - 1)} tokens, f16: {plain:.3f}\n")
        print("| | ours | llama.cpp, same formats | ours to it | llama.cpp, its own mix | ours to it |")
        print("|---|---|---|---|---|---|")
        for kind, ours, same, own in rows[text]:
            part = [f"{x:.3f} ({100 * (x / plain - 1):+.2f} %)" for x in (ours, same, own)]
            print(f"| {kind} | {part[0]} | {part[1]} | {100 * (ours / same - 1):+.3f} % | {part[2]} | {100 * (ours / own - 1):+.3f} % |")
        print()
sys.exit(bad)
