"""Writes `tiny.json` next to this file: the `config.json` of a tiny model of each family, with the defaults of transformers.

    pip install torch transformers
    python make_tiny.py

Only sizes are given. SmolLM3 and Phi-3 have no padding token: their default is outside a small vocabulary, which transformers
refuses.
"""

import json
import pathlib

from transformers import CONFIG_MAPPING, AutoModelForCausalLM

SIZES = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
GROUPED = SIZES | dict(num_key_value_heads=2)
CASES = {family: GROUPED for family in ("llama", "mistral", "qwen2", "qwen3", "olmo2", "gemma2", "gemma3_text")}
CASES |= {
    "mixtral": GROUPED | dict(num_local_experts=4),
    "qwen3_moe": GROUPED | dict(moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2),
    "smollm3": GROUPED | dict(pad_token_id=None),
    "phi3": GROUPED | dict(pad_token_id=None),
    "gpt2": dict(vocab_size=64, n_embd=64, n_layer=2, n_head=4),
    "gpt_neox": SIZES,
}

if __name__ == "__main__":
    made = {name: AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**sizes)).config for name, sizes in CASES.items()}
    lines = [json.dumps(json.loads(config.to_json_string())) for config in made.values()]
    (pathlib.Path(__file__).parent / "tiny.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
