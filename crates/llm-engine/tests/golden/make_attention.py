"""Writes `attention.json`: roll-out, head scores and effects of ablations of golden checkpoints of llm-model, by numpy.

    pip install numpy torch transformers
    python make_attention.py

The weights and logits are those of transformers with eager attention. The head scores are those of `detect_head` of TransformerLens
with `error_measure="mul"`, from the matrices of its patterns.
"""

import json
import pathlib

import numpy as np
import torch
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent
FAMILIES = HERE.parents[2] / "llm-model" / "tests" / "golden" / "families"
NAMES = ["llama", "mistral", "gemma2"]
ABLATED = [(0, 1), (2, 3)]


def patterns(ids):
    same = np.tril(ids[:, None] == ids[None], -1).astype(float)
    induction = np.zeros_like(same)
    induction[:, 1:] = same[:, :-1]
    return {"previous_token": np.eye(len(ids), k=-1), "duplicate_token": same, "induction": np.tril(induction)}


def scores(a, ids, exclude_bos):
    a = a.copy()
    first = a[1:, 0].mean()
    if exclude_bos:
        a[:, 0] = 0
    return {name: (a * p).sum() / a.sum() for name, p in patterns(ids).items()} | {"first_token": first}


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@torch.no_grad()
def of(name):
    rng = np.random.default_rng(7)
    block = rng.integers(3, 53, 9)
    ids = np.concatenate([block, block, rng.integers(3, 53, 4), block[:2]])
    model = AutoModelForCausalLM.from_pretrained(FAMILIES / name, attn_implementation="eager").eval()
    heads, kl = model.config.num_attention_heads, []

    def logits(ablated):
        def hook(index):
            def zero(_, inputs):
                y = inputs[0].clone()
                d = y.shape[-1] // heads
                for layer, head in ablated:
                    if layer == index:
                        y[..., head * d : (head + 1) * d] = 0
                return (y,)

            return zero

        hooks = [l.self_attn.o_proj.register_forward_pre_hook(hook(i)) for i, l in enumerate(model.model.layers)]
        out = model(input_ids=torch.tensor(ids)[None], output_attentions=True)
        for hook in hooks:
            hook.remove()
        return log_softmax(out.logits[0].double().numpy()), out.attentions

    before, weights = logits([])
    weights = [a[0].double().numpy() for a in weights]
    product, rollout = np.eye(len(ids)), []
    for a in weights:
        product = (a.mean(0) + np.eye(len(ids))) / 2 @ product
        rollout.append(product)
    divergence = lambda after: (np.exp(before) * (before - after)).sum(-1)
    each = [(l, h) for l in range(len(weights)) for h in range(heads)]
    return {
        "ids": ids.tolist(),
        "rollout_of_last_token": [r[-1].tolist() for r in rollout],
        "rollout_of_token_13": [r[13].tolist() for r in rollout],
        "scores": [[scores(a, ids, bos) for layer in weights for a in layer] for bos in (False, True)],
        "kl": divergence(logits(ABLATED)[0]).tolist(),
        "kl_of_each": [divergence(logits([head])[0])[13] for head in each],
    }


def rounded(x):
    if isinstance(x, dict):
        return {k: rounded(v) for k, v in x.items()}
    return [rounded(v) for v in x] if isinstance(x, list) else round(float(x), 7) if not isinstance(x, int) else x


(HERE / "attention.json").write_text(json.dumps({name: rounded(of(name)) for name in NAMES}) + "\n")
