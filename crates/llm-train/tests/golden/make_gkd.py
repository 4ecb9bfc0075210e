"""Writes gkd.json: values and gradients of the generalised Jensen-Shannon divergence of TRL.

python make_gkd.py > gkd.json   (trl 1.16, torch)
"""

import json

import torch
from trl.experimental.gkd import GKDTrainer

torch.manual_seed(7)
ROWS, VOCAB = 6, 9
student = (torch.randn(ROWS, VOCAB, dtype=torch.float64) * 2).round(decimals=4)
teacher = (torch.randn(ROWS, VOCAB, dtype=torch.float64) * 2).round(decimals=4)
labels = torch.tensor([3, -100, 0, 8, -100, 5])
cases = []
for beta in [0.0, 0.1, 0.5, 0.9, 1.0]:
    for temperature in [1.0, 2.5]:
        x = student.clone().requires_grad_()
        loss = GKDTrainer.generalized_jsd_loss(
            x[None], teacher[None], labels=labels[None], beta=beta, temperature=temperature
        )
        loss.backward()
        gradient = [[round(v, 9) for v in row] for row in x.grad.tolist()]
        cases.append({"beta": beta, "temperature": temperature, "loss": round(loss.item(), 9), "gradient": gradient})
print(json.dumps({"student": student.tolist(), "teacher": teacher.tolist(), "labels": labels.tolist(), "cases": cases}))
