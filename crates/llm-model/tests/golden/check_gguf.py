"""Runs the output of `llm-infer convert` in llama.cpp: the greedy continuation must equal ours, token by token.

    python check_gguf.py MODEL LLM-INFER     # folder of a trained model, and our program (target/release/llm-infer)

Needs llama-cpp-python. The model is converted to f16 and q8_0 in a temporary folder; each of three prompts is continued by
64 tokens at temperature 0. llama.cpp rounds activations to the format of the weights, so both tokens are accepted if their
logits differ by less than `TIE`.
"""

import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from llama_cpp import Llama

PROMPTS = ["The history of the", "In 1995 , the", "The game was"]
TIE = 0.05

model, program = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]).resolve()
bad = 0
with tempfile.TemporaryDirectory() as folder:
    for kind in ("f16", "q8_0"):
        path = pathlib.Path(folder) / f"{kind}.gguf"
        convert = ["convert", "--model", str(model), "--to", "gguf", "--quantize", kind, "--out", str(path)]
        subprocess.run([program, *convert], check=True, stdout=subprocess.DEVNULL)
        theirs = Llama(str(path), n_ctx=256, verbose=False, logits_all=True, type_k=0, type_v=0)
        for prompt in PROMPTS:
            generate = ["generate", "--model", str(path), "--raw", "--temperature", "0", "--max-new-tokens", "64"]
            run = subprocess.run([program, *generate, "--prompt", prompt], check=True, capture_output=True, text=True)
            ours = theirs.tokenize(run.stdout.rstrip("\n").encode(), add_bos=False)
            sequence, margin = theirs.tokenize(prompt.encode(), add_bos=True), None
            for i, token in enumerate(ours):
                theirs.reset()
                theirs.eval(sequence)
                logits = np.array(theirs.scores[len(sequence) - 1])
                if token != int(logits.argmax()):
                    margin = float(logits.max() - logits[token])
                    if margin > TIE:
                        break
                sequence.append(token)
            else:
                i = len(ours)
            bad += i < len(ours)
            last_margin = "" if margin is None else f", margin of the last difference {margin:.3f}"
            print(f"{kind}, {prompt!r}: {i} of {len(ours)} tokens equal or tied{last_margin}")
sys.exit(bad > 0)
