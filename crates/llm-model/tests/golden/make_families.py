"""Writes the golden checkpoints of the families: tiny models with random weights, and the outputs of transformers.

    pip install torch transformers
    python make_families.py [NAME...]     # writes families/NAME/ next to this file

Each folder has a checkpoint saved by transformers, and `expected.safetensors`:

* `padded_ids` (2, 12), the second row with three tokens of left padding, and `padded_logits`;
* `long_ids` (1, 200) and `long_logits`; with dynamic rotary scaling, where decoding token by token uses other frequencies,
  also `cached_logits`: 150 tokens at once, then one at a time;
* for a mixture of experts, `aux_loss` of both rows of `padded_ids` from `load_balancing_loss_func`.

The settings are unusual on purpose: an odd vocabulary size, grouped-query attention, head_dim not equal to hidden / heads,
biases, windows shorter than the sequence, rotary scaling, tied and untied output layers.
"""

import pathlib
import sys

import torch
import transformers
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent / "families"
SHAPE = dict(
    vocab_size=53,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.25,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
    attn_implementation="eager",
)
LLAMA3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, rope_theta=10000.0)
GPT2 = dict(
    vocab_size=53, n_embd=24, n_layer=3, n_head=4, n_positions=211, n_inner=37, initializer_range=0.25,
    bos_token_id=0, eos_token_id=1, pad_token_id=2, attn_implementation="eager",
)
NEOX = {k: v for k, v in SHAPE.items() if k != "num_key_value_heads"}
# Other layer types than the default of the family.
SOME = ["sliding_attention", "full_attention", "sliding_attention"]

CASES = {
    "llama": ("Llama", dict(
        head_dim=10, attention_bias=True, mlp_bias=True, tie_word_embeddings=False, hidden_act="gelu",
        rope_parameters=LLAMA3 | dict(original_max_position_embeddings=64))),
    "llama_linear": ("Llama", dict(
        num_key_value_heads=1, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="linear", factor=2.5, rope_theta=5000.0))),
    "llama_dynamic": ("Llama", dict(
        head_dim=8, max_position_embeddings=100, rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=10000.0))),
    "llama_yarn": ("Llama", dict(
        head_dim=16, rope_parameters=dict(
            rope_type="yarn", factor=4.0, rope_theta=10000.0, original_max_position_embeddings=64, beta_fast=16.0))),
    "mistral": ("Mistral", dict(head_dim=8, sliding_window=17, tie_word_embeddings=False)),
    "mixtral": ("Mixtral", dict(
        head_dim=8, num_local_experts=5, num_experts_per_tok=2, router_aux_loss_coef=0.02, sliding_window=50)),
    "qwen2": ("Qwen2", dict(
        tie_word_embeddings=True, use_sliding_window=True, sliding_window=23, max_window_layers=1)),
    "qwen3": ("Qwen3", dict(head_dim=10, attention_bias=True, use_sliding_window=True, sliding_window=9, max_window_layers=2)),
    "qwen3_moe": ("Qwen3Moe", dict(
        head_dim=10, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=20, norm_topk_prob=False,
        mlp_only_layers=[1], attention_bias=True, router_aux_loss_coef=0.05)),
    "smollm3": ("SmolLM3", dict(
        no_rope_layers=[1, 0, 1], use_sliding_window=True, sliding_window=31, attention_bias=True, mlp_bias=True,
        tie_word_embeddings=True)),
    "olmo2": ("Olmo2", dict(num_key_value_heads=1, attention_bias=True, tie_word_embeddings=False)),
    "phi3": ("Phi3", dict(
        hidden_size=32, sliding_window=40, tie_word_embeddings=False, original_max_position_embeddings=128,
        rope_parameters=dict(
            rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=0.75,
            short_factor=[1.0, 1.25, 1.5], long_factor=[1.5, 3.0, 4.5]))),
    "gemma2": ("Gemma2", dict(
        head_dim=10, sliding_window=21, query_pre_attn_scalar=7, attn_logit_softcapping=3.0, final_logit_softcapping=5.0,
        attention_bias=True)),
    "gemma3_text": ("Gemma3", dict(
        head_dim=10, sliding_window=21, query_pre_attn_scalar=13, layer_types=SOME, tie_word_embeddings=True,
        rope_parameters=dict(
            full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1000000.0),
            sliding_attention=dict(rope_type="default", rope_theta=5000.0)))),
    "gpt2": ("GPT2", GPT2),
    "gpt2_untied": ("GPT2", GPT2 | dict(tie_word_embeddings=False, n_inner=None, activation_function="gelu", scale_attn_weights=False)),
    "gpt_neox": ("GPTNeoX", NEOX | dict(hidden_size=32, rope_parameters=dict(
        rope_type="default", rope_theta=5000.0, partial_rotary_factor=0.25))),
    "gpt_neox_sequential": ("GPTNeoX", NEOX | dict(
        hidden_size=32, use_parallel_residual=False, attention_bias=False, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="linear", factor=3.0, rope_theta=10000.0, partial_rotary_factor=0.5))),
}


def build(name):
    family, options = CASES[name]
    shape = {} if family in ("GPT2", "GPTNeoX") else SHAPE
    config = getattr(transformers, {"Gemma3": "Gemma3TextConfig"}.get(family, family + "Config"))
    model = getattr(transformers, {"GPT2": "GPT2LMHeadModel"}.get(family, family + "ForCausalLM"))
    torch.manual_seed(sum(map(ord, name)))
    model = model(config(**(shape | options))).eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # "grouped" needs row sizes in multiples of 16 bytes
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms of exactly one and biases of zero would hide errors
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def make(name):
    model = build(name)
    folder = HERE / name
    model.save_pretrained(folder)
    vocab = model.config.vocab_size
    expected = {}

    padded = torch.randint(3, vocab, (2, 12))
    padded[1, :3] = 2
    mask = (torch.arange(12)[None] >= torch.tensor([[0], [3]])).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    options = dict(output_router_logits=True) if "router_aux_loss_coef" in model.config.to_dict() else {}
    out = model(input_ids=padded, attention_mask=mask, position_ids=positions, **options)
    expected |= {"padded_ids": padded, "padded_logits": out.logits}
    if options:
        expected["aux_loss"] = out.aux_loss.reshape(1)

    long = torch.randint(3, vocab, (1, 200))
    expected |= {"long_ids": long, "long_logits": model(input_ids=long).logits}
    if name == "llama_dynamic":
        model = type(model).from_pretrained(folder, attn_implementation="eager").eval()  # the frequencies are stateful
        out = model(input_ids=long[:, :150], use_cache=True)
        logits = [out.logits]
        for i in range(150, 200):
            out = model(input_ids=long[:, i : i + 1], past_key_values=out.past_key_values, use_cache=True)
            logits.append(out.logits)
        expected["cached_logits"] = torch.cat(logits, 1)
    save_file({n: t.contiguous() for n, t in expected.items()}, folder / "expected.safetensors")


for name in sys.argv[1:] or CASES:
    make(name)
    print(name, sum(p.stat().st_size for p in (HERE / name).iterdir()))
