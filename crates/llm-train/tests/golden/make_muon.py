"""Writes muon.json: three steps of torch.optim.Muon (torch 2.15, adjust_lr_fn="match_rms_adamw") on matrices of several shapes.

Needs: pip install torch. Run: python make_muon.py

"exact" has the orthogonalisation in f64 instead of torch's bf16, "bf16" is torch as it is.
"""

import json
import pathlib

import torch

LEARNING_RATE, WEIGHT_DECAY, STEPS = 0.05, 0.1, 3


def train(shape, dtype):
    """The initial matrix, the gradients and the matrix after the steps."""
    generator = torch.Generator().manual_seed(shape[0] * 1000 + shape[1])
    # Few digits, so that the file is small and the numbers are equal in f32.
    draw = lambda: (torch.randn(shape, generator=generator, dtype=torch.float64) * 64).round() / 64
    start, gradients = draw(), [draw() for _ in range(STEPS)]
    weight = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Muon(
        [weight], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    names = torch.bfloat16
    torch.bfloat16 = dtype  # the dtype of the Newton-Schulz iterations
    try:
        for gradient in gradients:
            weight.grad = gradient
            optimizer.step()
    finally:
        torch.bfloat16 = names
    return start, gradients, weight.detach()


def rounded(matrix):
    return [round(x, 7) for x in matrix.flatten().tolist()]


cases = []
for shape in [(6, 6), (5, 9), (9, 5), (1, 8)]:
    start, gradients, exact = train(shape, torch.float64)
    _, _, bf16 = train(shape, torch.bfloat16)
    cases.append({
        "shape": shape,
        "start": start.flatten().tolist(),
        "gradients": [gradient.flatten().tolist() for gradient in gradients],
        "exact": rounded(exact),
        "bf16": rounded(bf16),
    })
golden = {"learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "torch": torch.__version__, "cases": cases}
path = pathlib.Path(__file__).with_name("muon.json")
path.write_text("\n".join(json.dumps(golden).replace("}, {", "},\n{").split("\n")) + "\n")
