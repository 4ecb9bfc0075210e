"""Loads the adapters that `tests/lora` trained and saved with peft, and compares the logits.

    pip install torch transformers peft
    cargo test -p llm-model --test lora
    python check_lora.py TARGET/tmp/lora

Exits with 1 if a tensor is missing or unexpected, or if the logits differ by more than 1e-4.
"""

import pathlib
import sys

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent


def check(folder):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(HERE / "tied"), folder).eval()
    theirs, ours = get_peft_model_state_dict(model), load_file(folder / "adapter_model.safetensors")
    same = theirs.keys() == ours.keys() and all(torch.equal(theirs[n], ours[n]) for n in ours)
    expected = load_file(folder / "expected.safetensors")
    with torch.no_grad():
        difference = (model(input_ids=expected["input_ids"]).logits - expected["logits"]).abs().max().item()
        with model.disable_adapter():
            moved = (model(input_ids=expected["input_ids"]).logits - expected["logits"]).abs().max().item()
    print(f"{folder.name}: {len(ours)} tensors, the same: {same}, logits differ by {difference:.1e}, moved by {moved:.1e}")
    return same and difference <= 1e-4 and moved > 1e-2


if __name__ == "__main__":
    folders = sorted(p for p in pathlib.Path(sys.argv[1]).iterdir() if p.is_dir())
    sys.exit(0 if folders and all([check(folder) for folder in folders]) else 1)
