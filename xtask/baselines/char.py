"""Trains a character-level GPT in PyTorch: the baseline of pre-training on one small text.

    python char.py --text input.txt --layers 4 --width 128 --heads 4 --seq-len 64 --batch-size 12 --steps 2000

The model is GPT-2's (Radford et al. 2019): learned positions, LayerNorm without bias, GELU, tied embedding and output. The first 90 % of
the characters are for training, the rest for validation. AdamW with betas 0.9 and 0.99, weight decay 0.1 on matrices, 100 steps of
warm-up, then a cosine down to a tenth; gradients are clipped to 1. Prints one JSON line per evaluation: step, seconds of training
without evaluation, and the mean validation loss in nats per character over the whole validation text, in windows of --seq-len.
"""

import argparse
import json
import math
import time

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        b, t, c = x.shape
        parts = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        drop = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(*parts, is_causal=True, dropout_p=drop).transpose(1, 2).reshape(b, t, c)
        x = x + F.dropout(self.proj(y), drop)
        return x + F.dropout(self.down(F.gelu(self.up(self.norm2(x)))), drop)


class Model(nn.Module):
    def __init__(self, vocab, args):
        super().__init__()
        self.embed, self.positions = nn.Embedding(vocab, args.width), nn.Embedding(args.seq_len, args.width)
        self.blocks = nn.ModuleList(Block(args.width, args.heads, args.dropout) for _ in range(args.layers))
        self.norm, self.dropout = nn.LayerNorm(args.width, bias=False), args.dropout
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                last = name.endswith(("proj.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * args.layers) if last else 0.02)

    def forward(self, ids, targets):
        x = self.embed(ids) + self.positions.weight[: ids.shape[1]]
        x = F.dropout(x, self.dropout if self.training else 0.0)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy((self.norm(x) @ self.embed.weight.T).flatten(0, 1), targets.flatten())


@torch.no_grad()
def evaluate(model, data, seq_len):
    model.eval()
    windows = (len(data) - 1) // seq_len
    ids = data[: windows * seq_len].view(windows, seq_len)
    targets = data[1 : windows * seq_len + 1].view(windows, seq_len)
    losses = [model(i, t).item() * len(i) for i, t in zip(ids.split(64), targets.split(64))]
    model.train()
    return sum(losses) / windows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", required=True)
    for name, default in [("layers", 4), ("width", 128), ("heads", 4), ("seq-len", 64), ("batch-size", 12), ("steps", 2000)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--eval-every", type=int, default=250)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after this time of training")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    with open(args.text, encoding="utf-8") as file:
        text = file.read()
    ids = {char: i for i, char in enumerate(sorted(set(text)))}
    data = torch.tensor([ids[char] for char in text])
    cut = int(len(data) * 0.9)
    train, validation = data[:cut], data[cut:]
    model = Model(len(ids), args)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.99))
    seconds = 0.0
    for step in range(args.steps + 1):
        if step % args.eval_every == 0 or step == args.steps or seconds > args.seconds:
            loss = evaluate(model, validation, args.seq_len)
            print(json.dumps({"step": step, "seconds": round(seconds, 2), "eval_loss": loss}), flush=True)
            if step == args.steps or seconds > args.seconds:
                break
        start = time.perf_counter()
        past = max(0, step - 100) / max(1, args.steps - 100)
        scale = min(1.0, (step + 1) / 100) * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * past)))
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * scale
        starts = torch.randint(len(train) - args.seq_len, (args.batch_size,))
        batch = torch.stack([train[s : s + args.seq_len + 1] for s in starts.tolist()])
        loss = model(batch[:, :-1], batch[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds += time.perf_counter() - start


if __name__ == "__main__":
    main()
