"""Times the training step of a Llama-shaped model in PyTorch on random tokens: the baseline of `llm-train bench`.

    python train.py --mode eager-f32 --steps 5 [--vocab 8192 --hidden 384 ...]

Modes: eager-f32, eager-bf16, compiled-f32, compiled-bf16 (bf16 is autocast; weights and AdamW stay in f32).
Prints one JSON object with the keys of `llm-train bench`.
"""

import argparse
import contextlib
import json
import resource
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, hidden, heads, kv_heads, inner):
        super().__init__()
        self.heads, self.kv_heads, self.size = heads, kv_heads, hidden // heads
        self.norm1, self.norm2 = nn.RMSNorm(hidden, eps=1e-5), nn.RMSNorm(hidden, eps=1e-5)
        self.q = nn.Linear(hidden, hidden, bias=False)
        self.k = nn.Linear(hidden, kv_heads * self.size, bias=False)
        self.v = nn.Linear(hidden, kv_heads * self.size, bias=False)
        self.o = nn.Linear(hidden, hidden, bias=False)
        self.gate, self.up = nn.Linear(hidden, inner, bias=False), nn.Linear(hidden, inner, bias=False)
        self.down = nn.Linear(inner, hidden, bias=False)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        y = self.norm1(x)
        q = self.q(y).view(b, t, self.heads, self.size).transpose(1, 2)
        k = self.k(y).view(b, t, self.kv_heads, self.size).transpose(1, 2)
        v = self.v(y).view(b, t, self.kv_heads, self.size).transpose(1, 2)
        q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)
        grouped = self.heads != self.kv_heads
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, -1))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def apply_rotary(x, cos, sin):
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


class Model(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.embed = nn.Embedding(args.vocab, args.hidden)
        self.blocks = nn.ModuleList(
            Block(args.hidden, args.heads, args.kv_heads, args.inner) for _ in range(args.layers)
        )
        self.norm = nn.RMSNorm(args.hidden, eps=1e-5)
        size = args.hidden // args.heads
        frequencies = 10000.0 ** (-torch.arange(0, size, 2) / size)
        angles = torch.outer(torch.arange(args.seq_len), frequencies)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, ids, labels):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = F.linear(self.norm(x), self.embed.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", default="eager-f32")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    sizes = dict(vocab=8192, hidden=384, layers=6, heads=6, kv_heads=6, inner=1024, batch_size=8, seq_len=512)
    for name, default in sizes.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(42)
    model = Model(args)
    run = torch.compile(model) if args.mode.startswith("compiled") else model
    bf16 = args.mode.endswith("bf16")
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.95), fused=True)
    seconds = []
    for step in range(args.steps + 1):
        ids = torch.randint(args.vocab, (args.batch_size, args.seq_len))
        labels = torch.randint(args.vocab, (args.batch_size, args.seq_len))
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
            loss = run(ids, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step > 0:
            seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    tokens = args.batch_size * args.seq_len
    print(
        json.dumps(
            {
                "parameters": sum(p.numel() for p in model.parameters()),
                "tokens_per_step": tokens,
                "tokens_per_second": tokens / median,
                "seconds_per_step": median,
                "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "loss": loss.item(),
            }
        )
    )


if __name__ == "__main__":
    main()
