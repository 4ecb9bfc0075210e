"""Writes the golden checkpoints: tiny Llamas with random weights, and the outputs of transformers.

    pip install torch transformers
    python make.py            # writes tied/ untied/ bf16/ reward/ value/ next to this file

Each folder has a checkpoint saved by transformers, and `expected.safetensors` with the input ids, the logits, the attention
weights of every layer, the logits of the same rows with left padding, and the gradient of the mean cross-entropy (or of the
mean score) for every parameter.
"""

import pathlib

import torch
from safetensors.torch import save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
)

HERE = pathlib.Path(__file__).parent
SHAPE = dict(
    vocab_size=48,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.3,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
    attn_implementation="eager",
)
CASES = {
    "tied": (LlamaForCausalLM, dict(tie_word_embeddings=True), torch.float32, "5GB"),
    # Sharded, with head_dim larger than hidden_size / num_attention_heads, and another rope_theta.
    "untied": (LlamaForCausalLM, dict(tie_word_embeddings=False, head_dim=6, rope_theta=500.0), torch.float32, "8KB"),
    "bf16": (LlamaForCausalLM, dict(tie_word_embeddings=True), torch.bfloat16, "5GB"),
    "reward": (LlamaForSequenceClassification, dict(num_labels=1), torch.float32, "5GB"),
    "value": (LlamaForTokenClassification, dict(num_labels=1), torch.float32, "5GB"),
}


def make(name, cls, options, dtype, shard):
    torch.manual_seed(len(name))
    model = cls(LlamaConfig(**SHAPE, **options)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms of exactly one would hide errors
            torch.nn.init.normal_(parameter, 1.0, 0.2)
    model = model.to(dtype)
    folder = HERE / name
    model.save_pretrained(folder, max_shard_size=shard)
    model = model.to(torch.float32)  # bf16 weights, f32 arithmetic

    ids = torch.randint(3, SHAPE["vocab_size"], (2, 9))
    out = model(input_ids=ids, output_attentions=True)
    logits = out.logits
    expected = {"input_ids": ids.to(torch.int64), "logits": logits}
    expected |= {f"attention.{i}": a for i, a in enumerate(out.attentions)}

    # The first row, and the last six tokens of the second row with three tokens of left padding.
    padded = torch.cat([ids[:1], torch.cat([torch.full((1, 3), 2), ids[1:, 3:]], 1)])
    mask = (torch.arange(9)[None] >= torch.tensor([[0], [3]])).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected["padded_ids"] = padded
    expected["padded_logits"] = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits

    if name == "reward":
        loss = logits.mean()
    elif name == "value":
        loss = logits.square().mean()
    else:
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    expected["loss"] = loss.reshape(1)
    loss.backward()
    expected |= {f"grad.{n}": p.grad for n, p in model.named_parameters()}
    save_file({n: t.detach().contiguous() for n, t in expected.items()}, folder / "expected.safetensors")


for name, case in CASES.items():
    make(name, *case)
    print(name, sorted(p.name for p in (HERE / name).iterdir()))
