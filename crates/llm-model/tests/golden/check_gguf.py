"""Lets llama.cpp run what `llm-infer convert` writes: its greedy continuation must be ours, token by token.

    python check_gguf.py MODEL LLM-INFER     # a folder of a trained model, and our program (target/release/llm-infer)

Needs llama-cpp-python. The model is converted to f16 and q8_0 in a temporary folder; each of three prompts is continued by
64 tokens at temperature 0. llama.cpp rounds activations to the weights' format, so where the two best tokens are closer than
`TIE` in its logits, either may follow.
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
        convert = ["convert", str(model), "--to", "gguf", "--quantize", kind, "--out", str(path)]
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
            turned = "" if margin is None else f", the largest margin against ours {margin:.3f}"
            print(f"{kind}, {prompt!r}: {i} of {len(ours)} tokens the same or tied{turned}")
sys.exit(bad > 0)
