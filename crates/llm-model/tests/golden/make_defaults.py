"""Writes `defaults.json` next to this file: the defaults of transformers for missing keys of a `config.json`.

    pip install torch transformers
    python make_defaults.py

Each case has the keys of a file (`said`) and the full configuration that transformers resolves from them (`meant`).
`tests/missing_keys.rs` removes one key at a time and checks that we read the same configuration.
"""

import json
import pathlib

from transformers import CONFIG_MAPPING

LONGROPE = dict(type="longrope", short_factor=[1.0] * 48, long_factor=[2.0] * 48)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
SLIDING = dict(use_sliding_window=True)
CASES = [(family, {}) for family in (
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "smollm3", "olmo2", "phi3", "gemma2", "gemma3_text", "gpt2",
    "gpt_neox")]
CASES += [
    ("llama", dict(rope_scaling=LLAMA3)),
    ("llama", dict(rope_scaling=dict(type="linear", factor=2.0), rope_theta=5e5)),
    ("mistral", dict(sliding_window=None)),
    ("qwen2", SLIDING),
    ("qwen3", SLIDING),
    ("qwen3_moe", SLIDING | dict(decoder_sparse_step=2)),
    ("smollm3", SLIDING | dict(sliding_window=100, no_rope_layer_interval=3)),
    ("phi3", dict(rope_scaling=LONGROPE, max_position_embeddings=131072)),
    ("phi3", dict(partial_rotary_factor=0.75)),
    ("gemma2", dict(attn_logit_softcapping=None, final_logit_softcapping=None)),
    ("gemma3_text", dict(rope_scaling=dict(rope_type="linear", factor=8.0), rope_theta=2e6, rope_local_base_freq=5e3)),
    ("gemma3_text", dict(sliding_window_pattern=4)),
    ("gpt_neox", dict(rotary_pct=0.5, rotary_emb_base=5000)),
    ("gpt_neox", dict(rope_theta=5000)),
]
# Keys that do not affect the computation.
ASIDE = ("transformers_version", "_name_or_path", "id2label", "label2id", "dtype", "architectures", "problem_type", "return_dict",
         "output_attentions", "output_hidden_states", "chunk_size_feed_forward", "is_encoder_decoder", "use_cache")


def case(family, said):
    made = CONFIG_MAPPING[family](**json.loads(json.dumps(said)))
    meant = {key: value for key, value in made.to_dict().items() if key not in ASIDE}
    return {"said": {"model_type": family} | said, "meant": meant}


if __name__ == "__main__":
    lines = [json.dumps(case(family, said)) for family, said in CASES]
    (pathlib.Path(__file__).parent / "defaults.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
