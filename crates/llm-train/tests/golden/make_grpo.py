"""Writes grpo.json: losses and gradients of TRL's GRPOTrainer and RLOOTrainer for fixed log-probabilities.

    pip install trl==1.16.0 && python make_grpo.py
"""

import json
import math
import random
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch
import trl
from trl import GRPOTrainer, RLOOTrainer

LENGTHS = [5, 2, 4, 1, 3, 5]
WIDTH, MAX_NEW_TOKENS = 5, 8
ADVANTAGES = [1.3, -0.8, 0.4, -1.9, 0.0, -0.6]
EPSILON_LOW, EPSILON_HIGH = 0.2, 0.28

random.seed(5)
OLD = [[round(random.uniform(-3, -0.2), 4) for _ in range(n)] for n in LENGTHS]
NEW = [[round(old + random.uniform(-0.5, 0.5), 4) for old in row] for row in OLD]
REFERENCE = [[round(old + random.uniform(-0.6, 0.6), 4) for old in row] for row in OLD]


def padded(rows):
    return torch.tensor([row + [0.0] * (WIDTH - len(row)) for row in rows], dtype=torch.float64)


MASK = torch.tensor([[1.0] * n + [0.0] * (WIDTH - n) for n in LENGTHS], dtype=torch.float64)


class Metrics(defaultdict):
    def __missing__(self, key):
        self[key] = defaultdict(list)
        return self[key]


def trainer(logps, loss_type, beta):
    accelerator = SimpleNamespace(
        gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x, num_processes=1
    )
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, torch.zeros_like(logps), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=beta,
        args=SimpleNamespace(use_bias_correction_kl=True, delta=None, steps_per_generation=1),
        loss_type=loss_type,
        epsilon_low=EPSILON_LOW,
        epsilon_high=EPSILON_HIGH,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=MAX_NEW_TOKENS,
        accelerator=accelerator,
        model=SimpleNamespace(training=True),
        _entropy_bonus_enabled=False,
        _metrics=Metrics(),
    )


def case(kind, loss_type, beta):
    logps = padded(NEW).requires_grad_()
    inputs = {
        "prompt_ids": torch.zeros((len(LENGTHS), 1), dtype=torch.long),
        "prompt_mask": torch.ones((len(LENGTHS), 1), dtype=torch.long),
        "completion_ids": torch.zeros((len(LENGTHS), WIDTH), dtype=torch.long),
        "completion_mask": MASK,
        "advantages": torch.tensor(ADVANTAGES, dtype=torch.float64),
        "old_per_token_logps": padded(OLD),
        "old_logps": (padded(OLD) * MASK).sum(1),
        "ref_per_token_logps": padded(REFERENCE),
        "num_items_in_batch": MASK.sum(),
    }
    self = trainer(logps, loss_type, beta)
    loss = kind._compute_loss(self, None, inputs)
    loss.backward()
    gradient = [row[:n] for row, n in zip(logps.grad.tolist(), LENGTHS)]
    metrics = {name: values[0] for name, values in self._metrics["train"].items() if not math.isnan(values[0])}
    return {"loss_type": loss_type, "beta": beta, "loss": loss.item(), "gradient": gradient, "metrics": metrics}


cases = [case(GRPOTrainer, loss_type, beta) for loss_type in ["grpo", "dr_grpo", "dapo"] for beta in [0.0, 0.3]]
cases.append(case(RLOOTrainer, "rloo", 0.0))
result = {
    "trl": trl.__version__,
    "max_new_tokens": MAX_NEW_TOKENS,
    "epsilon": EPSILON_LOW,
    "epsilon_high": EPSILON_HIGH,
    "advantages": ADVANTAGES,
    "logprobs": NEW,
    "old_logprobs": OLD,
    "ref_logprobs": REFERENCE,
    "cases": cases,
}
Path(__file__).with_name("grpo.json").write_text(json.dumps(result) + "\n")
