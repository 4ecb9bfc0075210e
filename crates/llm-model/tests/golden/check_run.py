"""Loads every stage of a lifecycle run in transformers and compares its logits with `llm-infer logits`.

    pip install torch transformers
    python check_run.py RUN            # from the root of the repository; builds llm-infer if needed

Exits with 1 if a checkpoint loads with warnings or errors, or if its logits differ by more than 1e-4.
"""

import pathlib
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

TEXT = "The teacher who met the students gave them a lesson. What is the capital of France?"
STAGES = ["base", "instruct", "aligned", "student", "reward"]


def check(folder):
    cls = AutoModelForSequenceClassification if folder.name == "reward" else AutoModelForCausalLM
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    complaints = {kind: names for kind, names in info.items() if names}
    if folder.name == "reward":
        assert model.config.num_labels == 1, model.config.num_labels
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXT)["input_ids"]
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch) / "logits.safetensors"
        command = ["cargo", "run", "--quiet", "--release", "-p", "llm-infer", "--", "logits"]
        command += ["--model", str(folder), "--ids", ",".join(map(str, ids)), "--out", str(out)]
        subprocess.run(command, check=True)
        ours = load_file(out)["logits"]
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor([ids])).logits[0].float()
        if folder.name == "reward":  # transformers reads the score at the last token
            ours = ours[-1]
    difference = (ours - theirs).abs().max().item()
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hello."}], tokenize=False) if folder.name != "base" else ""
    print(f"{folder.name}: {type(model).__name__}, {model.num_parameters()} parameters, difference {difference:.1e}, {chat!r}")
    return not complaints and difference <= 1e-4


if __name__ == "__main__":
    run = pathlib.Path(sys.argv[1])
    sys.exit(0 if all([check(run / stage) for stage in STAGES]) else 1)
