"""Writes the golden adapters and the outputs of peft: LoRA, rsLoRA, DoRA and LoRA with trainable token rows of the tiny Llama in
tied/, and adapters of embeddings, heads, fused, transposed and expert matrices, and whole modules, of other tiny models.

    pip install torch transformers peft
    python make_lora.py       # writes lora/plain/ lora/rslora/ lora/dora/ lora/tokens/ lora/modules/*/ next to this file

Each folder has an adapter saved by peft, and `expected.safetensors` with the input ids, the logits, the mean cross-entropy (of a
classifier, the mean squared score) and its gradient for every tensor of the adapter, with the names of
`adapter_model.safetensors`.
"""

import json
import pathlib

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

HERE = pathlib.Path(__file__).parent
ATTENTION = ["q_proj", "v_proj", "o_proj"]
CASES = {
    "plain": dict(r=3, lora_alpha=5, target_modules=ATTENTION + ["gate_proj", "down_proj"]),
    "rslora": dict(r=4, lora_alpha=3, target_modules=ATTENTION + ["layers.1.mlp.up_proj"], use_rslora=True),
    "dora": dict(r=2, lora_alpha=7, target_modules=ATTENTION + ["up_proj", "down_proj"], use_dora=True),
    "tokens": dict(r=2, lora_alpha=4, target_modules=ATTENTION, trainable_token_indices=[7, 3, 11]),
}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
MODULES = {
    "embedding": ("untied", dict(target_modules=["q_proj", "embed_tokens", "lm_head"])),
    "tied_embedding": ("tied", dict(target_modules=["o_proj", "embed_tokens"])),
    "tied_head": ("tied", dict(target_modules=["v_proj", "lm_head"])),
    "saved": ("untied", dict(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head", "norm"])),
    "saved_embedding": ("tied", dict(target_modules=["q_proj"], modules_to_save=["embed_tokens"])),
    "saved_tied": ("tied", dict(target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True)),
    "patterns": ("tied", dict(
        target_modules=["q_proj", "up_proj"], rank_pattern={"layers.1.mlp.up_proj": 3}, alpha_pattern={"q_proj": 9})),
    "gpt2": ("families/gpt2", dict(target_modules="all-linear")),
    "gpt2_dora": ("families/gpt2", dict(target_modules=["c_attn", "c_fc"], use_dora=True)),
    "gpt2_embeddings": ("families/gpt2", dict(target_modules=["c_attn", "wte", "wpe"])),
    "gpt_neox": ("families/gpt_neox", dict(target_modules="all-linear")),
    "phi3_dora": ("families/phi3", dict(target_modules="all-linear", use_dora=True)),
    "mixtral": ("families/mixtral", dict(target_modules=["q_proj"], target_parameters=EXPERTS + ["mlp.gate.weight"])),
    "qwen3_moe": ("families/qwen3_moe", dict(target_modules="all-linear")),
    "qwen3_moe_down": ("families/qwen3_moe", dict(target_modules=["o_proj"], target_parameters=EXPERTS[1:])),
    "reward": ("reward", dict(task_type="SEQ_CLS", target_modules="all-linear")),
}


def make(name, options, base_name="tied", folder=None):
    torch.manual_seed(len(name))
    classifier = options.get("task_type") == "SEQ_CLS"
    kind = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    base = kind.from_pretrained(HERE / base_name, attn_implementation="eager")
    options = dict(dict(task_type="CAUSAL_LM", r=2, lora_alpha=3), **options)
    model = get_peft_model(base, LoraConfig(**options)).eval()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for parameter_name, parameter in trained.items():
        if "magnitude" in parameter_name:  # magnitudes equal to the norms would hide errors
            parameter.data *= 1 + 0.3 * torch.randn_like(parameter)
        else:
            torch.nn.init.normal_(parameter, 0.0, 0.3)
    folder = folder or HERE / "lora" / name
    model.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base_name  # not this machine's path
    for key in ["target_modules", "target_parameters", "modules_to_save"]:
        config[key] = config[key] and sorted(config[key])  # sets have a random order
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "README.md").unlink()  # an empty model card

    base_ids = load_file(HERE / base_name / "expected.safetensors")
    ids = base_ids["input_ids"] if "input_ids" in base_ids else base_ids["long_ids"][:, :24].contiguous()
    logits = model(input_ids=ids).logits
    if classifier:
        loss = logits.square().mean()
    else:
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    expected = {"input_ids": ids, "logits": logits, "loss": loss.reshape(1)}
    for parameter_name, parameter in trained.items():
        saved = parameter_name.replace(".default", "").replace("magnitude_vector.weight", "magnitude_vector")
        expected[f"grad.{saved.replace('.modules_to_save', '')}"] = parameter.grad
    same = "lm_head.weight" if options.get("ensure_weight_tying") else None  # one tensor, written twice
    assert {n for n in expected if n.startswith("grad.")} == {
        f"grad.{n}"
        for n in load_file(folder / "adapter_model.safetensors")
        if not n.endswith("base_layer.weight") and n != f"base_model.model.{same}"
    }
    save_file({n: t.detach().contiguous() for n, t in expected.items()}, folder / "expected.safetensors")


for name, options in CASES.items():
    make(name, options)
    print(name, sorted(p.name for p in (HERE / "lora" / name).iterdir()))
for name, (base_name, options) in MODULES.items():
    folder = HERE / "lora" / "modules" / name
    make(name, options, base_name, folder)
    print(name, sum(p.stat().st_size for p in folder.iterdir()))
