"""Writes the golden adapters of the tiny Llama in tied/: LoRA, rsLoRA, DoRA, and LoRA with trainable token rows, and the outputs
of peft.

    pip install torch transformers peft
    python make_lora.py       # writes lora/plain/ lora/rslora/ lora/dora/ lora/tokens/ next to this file

Each folder has an adapter saved by peft, and `expected.safetensors` with the input ids, the logits, the mean cross-entropy and
its gradient for every tensor of the adapter, with the names of `adapter_model.safetensors`.
"""

import pathlib

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent
ATTENTION = ["q_proj", "v_proj", "o_proj"]
CASES = {
    "plain": dict(r=3, lora_alpha=5, target_modules=ATTENTION + ["gate_proj", "down_proj"]),
    "rslora": dict(r=4, lora_alpha=3, target_modules=ATTENTION + ["layers.1.mlp.up_proj"], use_rslora=True),
    "dora": dict(r=2, lora_alpha=7, target_modules=ATTENTION + ["up_proj", "down_proj"], use_dora=True),
    "tokens": dict(r=2, lora_alpha=4, target_modules=ATTENTION, trainable_token_indices=[7, 3, 11]),
}


def make(name, options):
    torch.manual_seed(len(name))
    base = AutoModelForCausalLM.from_pretrained(HERE / "tied", attn_implementation="eager")
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for parameter_name, parameter in trained.items():
        if "magnitude" in parameter_name:  # magnitudes equal to the norms would hide errors
            parameter.data *= 1 + 0.3 * torch.randn_like(parameter)
        else:
            torch.nn.init.normal_(parameter, 0.0, 0.3)
    folder = HERE / "lora" / name
    model.peft_config["default"].base_model_name_or_path = "tied"  # not this machine's path
    model.save_pretrained(folder)
    (folder / "README.md").unlink()  # an empty model card

    ids = load_file(HERE / "tied" / "expected.safetensors")["input_ids"]
    logits = model(input_ids=ids).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    expected = {"input_ids": ids, "logits": logits, "loss": loss.reshape(1)}
    for parameter_name, parameter in trained.items():
        saved = parameter_name.replace(".default", "").replace("magnitude_vector.weight", "magnitude_vector")
        expected[f"grad.{saved}"] = parameter.grad
    assert {n for n in expected if n.startswith("grad.")} == {
        f"grad.{n}" for n in load_file(folder / "adapter_model.safetensors")
    }
    save_file({n: t.detach().contiguous() for n, t in expected.items()}, folder / "expected.safetensors")


for name, options in CASES.items():
    make(name, options)
    print(name, sorted(p.name for p in (HERE / "lora" / name).iterdir()))
