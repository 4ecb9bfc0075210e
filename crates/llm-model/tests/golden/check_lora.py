"""Loads the adapters that `tests/lora` trained and saved with peft, and compares the outputs.

    pip install torch transformers peft
    cargo test -p llm-model --test lora
    python check_lora.py TARGET/tmp/lora TARGET/tmp/lora_modules

Exits with 1 if a tensor is missing or unexpected, if the outputs differ by more than 1e-5 of the largest one, or if an adapter of a
language model does not change them.
"""

import json
import pathlib
import sys

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

HERE = pathlib.Path(__file__).parent


def check(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    classifier = config["task_type"] == "SEQ_CLS"
    kind = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    model = PeftModel.from_pretrained(kind.from_pretrained(HERE / config["base_model_name_or_path"]), folder).eval()
    theirs = get_peft_model_state_dict(model, save_embedding_layers=False)
    ours = load_file(folder / "adapter_model.safetensors")
    same = theirs.keys() == ours.keys() and all(torch.equal(theirs[n], ours[n]) for n in ours)
    if not same:
        print("  differ:", sorted(theirs.keys() ^ ours.keys()))
    expected = load_file(folder / "expected.safetensors")
    largest = expected["logits"].abs().max().clamp(min=1)
    with torch.no_grad():
        difference = ((model(input_ids=expected["input_ids"]).logits - expected["logits"]).abs().max() / largest).item()
        with model.disable_adapter():
            moved = (model(input_ids=expected["input_ids"]).logits - expected["logits"]).abs().max().item()
    print(f"{folder.name}: {len(ours)} tensors, the same: {same}, outputs differ by {difference:.1e}, moved by {moved:.1e}")
    return same and difference <= 1e-5 and (classifier or moved > 1e-2)


if __name__ == "__main__":
    folders = sorted(p for parent in sys.argv[1:] for p in pathlib.Path(parent).iterdir() if p.is_dir())
    sys.exit(0 if folders and all([check(folder) for folder in folders]) else 1)
