"""Writes sampling.json: distributions of the samplers by transformers, and by derivations in f64 of those that it does not have.

    python make_sampling.py

Each case has settings (keys of `Sampling`), a prompt, and steps: logits, the distribution after the samplers, the token that is then
accepted. Made with torch 2.x and transformers 5.x; numpy and torch on a CPU.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

random = np.random.default_rng(1)


def logits(vocab, scale=3.0):
    return np.round(random.standard_normal(vocab) * scale, 5).astype(np.float32)


def softmax(x):
    x = np.asarray(x, dtype=np.float64)
    e = np.exp(x - x.max())
    return e / e.sum()


def distribution(x):
    p = softmax(x)
    return [[i, float(p[i])] for i in range(len(p)) if p[i] > 0]


def warped(settings, prompt, vocab, processors, steps=1, scale=3.0):
    """A case of logits processors of transformers, in their order."""
    ids, out = list(prompt), []
    for _ in range(steps):
        row = logits(vocab, scale)
        x = torch.tensor(row)[None].double()
        for processor in processors:
            x = processor(torch.tensor([ids]), x)
        token = int(x[0].argmax())
        out.append({"logits": row.tolist(), "distribution": distribution(x[0].numpy()), "accept": token})
        ids.append(token)
    return {"source": "transformers", "settings": settings, "prompt": prompt, "steps": out}


def transformers_cases():
    cases = []
    for vocab, scale in [(50, 3.0), (200, 1.0), (200, 4.0)]:
        for t in [0.2, 1.5]:
            cases.append(warped({"temperature": t}, [1], vocab, [TemperatureLogitsWarper(t)], scale=scale))
        for k in [1, 40, 2000]:
            cases.append(warped({"top_k": k}, [1], vocab, [TopKLogitsWarper(k)], scale=scale))
        for p in [0.1, 0.5, 0.9]:
            cases.append(warped({"top_p": p}, [1], vocab, [TopPLogitsWarper(p)], scale=scale))
            cases.append(warped({"typical_p": p}, [1], vocab, [TypicalLogitsWarper(p)], scale=scale))
        for p in [0.01, 0.05, 0.3]:
            cases.append(warped({"min_p": p}, [1], vocab, [MinPLogitsWarper(p)], scale=scale))
        for r in [0.8, 1.3]:
            prompt = [int(i) for i in random.integers(0, vocab, 12)]
            penalty = RepetitionPenaltyLogitsProcessor(r)
            cases.append(warped({"repetition_penalty": r}, prompt, vocab, [penalty], steps=3, scale=scale))
        t, k, p, m, y = 0.7, 30, 0.9, 0.02, 0.8
        chain = [TemperatureLogitsWarper(t), MinPLogitsWarper(m), TopKLogitsWarper(k), TypicalLogitsWarper(y), TopPLogitsWarper(p)]
        settings = {"temperature": t, "min_p": m, "top_k": k, "typical_p": y, "top_p": p}
        cases.append(warped(settings, [1], vocab, chain, scale=scale))
        chain = [TopKLogitsWarper(k), TypicalLogitsWarper(y), TopPLogitsWarper(p), MinPLogitsWarper(m), TemperatureLogitsWarper(t)]
        cases.append(warped({"samplers": "llama.cpp", **settings}, [1], vocab, chain, scale=scale))
    return cases


def top_n_sigma(x, n):
    """Tang et al. 2024, "Top-nsigma", eq. 5."""
    x = np.where(x >= x.max() - n * x.std(), x, -np.inf)
    return x


def xtc(x, threshold):
    """The definition of its author: all tokens of at least the threshold, but the least likely of them."""
    p = softmax(x)
    order = np.argsort(-p, kind="stable")
    top = [i for i in order if p[i] >= threshold]
    out = x.astype(np.float64).copy()
    if len(top) > 1:
        out[top[:-1]] = -np.inf
    return out


def dynamic(x, base, spread, exponent):
    p = softmax(x)
    h = -(p * np.log(p)).sum() / math.log(len(p))
    low, high = max(0.0, base - spread), base + spread
    return x / (low + (high - low) * h**exponent)


def counted(x, prompt, answer, window, presence, frequency):
    """OpenAI: mu[j] -= c[j] * frequency + (c[j] > 0) * presence, over the answer."""
    ids = [(i, False) for i in prompt] + [(i, True) for i in answer]
    out = x.astype(np.float64).copy()
    recent = [i for i, mine in (ids[-window:] if window else ids) if mine]
    for token in set(recent):
        out[token] -= presence + frequency * recent.count(token)
    return out


def dry(x, ids, texts, multiplier, base, allowed, breakers, window):
    """The definition: for each earlier place, the longest match that ends there and at the end, without a breaker."""
    ids = ids[-window:] if window else ids
    ends, text = [], ""
    for token in ids:
        text += texts[token]
        ends.append(len(text))
    out = x.astype(np.float64).copy()
    # The number of tokens after the last one in which a breaker ends.
    after = len(ids)
    for breaker in breakers:
        at = text.rfind(breaker)
        if at >= 0:
            end = at + len(breaker)
            broken = next(i for i, e in enumerate(ends) if e >= end)
            after = min(after, len(ids) - 1 - broken)
    longest = {}
    for place in range(1, len(ids)):
        length = 0
        while length < place and length < after and ids[place - 1 - length] == ids[len(ids) - 1 - length]:
            length += 1
        longest[ids[place]] = max(longest.get(ids[place], 0), length)
    for token, length in longest.items():
        if length >= allowed:
            out[token] -= multiplier * base ** (length - allowed)
    return out


def mirostat(rows, tau, eta):
    """Basu et al. 2021, algorithm 2: the limit of the surprise follows the surprise of what was sampled."""
    mu, steps = 2 * tau, []
    for row in rows:
        p = softmax(row)
        kept = -np.log2(p) <= mu
        if not kept.any():
            kept[p.argmax()] = True
        q = np.where(kept, p, 0)
        q /= q.sum()
        token = int(random.choice(len(q), p=q))
        mu -= eta * (-math.log2(q[token]) - tau)
        steps.append({"logits": row.tolist(), "distribution": [[i, float(q[i])] for i in range(len(q)) if q[i] > 0], "accept": token})
    return steps


def derived(settings, f, vocab=80, scale=3.0):
    row = logits(vocab, scale)
    steps = [{"logits": row.tolist(), "distribution": distribution(f(row.astype(np.float64))), "accept": 0}]
    return {"source": "f64", "settings": settings, "prompt": [1], "steps": steps}


def derived_cases():
    cases = []
    for n in [0.3, 1.0, 2.5]:
        cases.append(derived({"top_n_sigma": n}, lambda x: top_n_sigma(x, n)))
        cases.append(derived({"top_n_sigma": n, "temperature": 3.0}, lambda x: top_n_sigma(x, n) / 3.0))
    for threshold, scale in [(0.1, 1.0), (0.05, 3.0), (0.001, 2.0), (0.5, 6.0), (0.6, 8.0)]:
        settings = {"xtc_probability": 1.0, "xtc_threshold": threshold}
        f = (lambda x: x) if threshold > 0.5 else (lambda x: xtc(x, threshold))
        cases.append(derived(settings, f, vocab=40, scale=scale))
    for base, spread, exponent in [(1.0, 0.5, 1.0), (0.7, 1.0, 2.0), (1.5, 0.2, 0.5)]:
        settings = {"temperature": base, "dynatemp_range": spread, "dynatemp_exponent": exponent}
        cases.append(derived(settings, lambda x: dynamic(x, base, spread, exponent)))
    for window in [0, 4, 9]:
        prompt, answer, steps = [3, 3, 5, 7], [], []
        for token in [3, 5, 5, 9, 5, 3]:
            row = logits(12)
            steps.append({"logits": row.tolist(), "distribution": distribution(counted(row, prompt, answer, window, 0.7, 0.3)), "accept": token})
            answer.append(token)
        settings = {"presence_penalty": 0.7, "frequency_penalty": 0.3, "penalty_window": window}
        cases.append({"source": "f64", "settings": settings, "prompt": prompt, "steps": steps})
    texts = ["a", "b", "c", "\n", "us", "er:", " d", "x:y", "e", "f"]
    for case in range(24):
        breakers = [["\n", ":"], ["user:"], [], ["\n"]][case % 4]
        window = [0, 14][case % 2]
        symbols = [0, 1, 2, 3] if case % 3 else [0, 1, 4, 5, 7]
        ids = [int(i) for i in random.choice(symbols, 30, p=None)]
        ids[18:24] = ids[4:10]
        prompt, steps = ids[:20], []
        for at in range(20, 30):
            row = logits(len(texts))
            expected = dry(row, ids[:at], texts, 0.8, 1.75, 2, breakers, window)
            steps.append({"logits": row.tolist(), "distribution": distribution(expected), "accept": ids[at]})
        settings = {"dry_multiplier": 0.8, "dry_breakers": breakers, "dry_window": window}
        cases.append({"source": "f64", "settings": settings, "prompt": prompt, "steps": steps, "texts": texts})
    for tau, eta in [(1.0, 0.1), (3.0, 0.5), (5.0, 0.1)]:
        steps = mirostat([logits(60) for _ in range(12)], tau, eta)
        cases.append({"source": "f64", "settings": {"mirostat_tau": tau, "mirostat_eta": eta}, "prompt": [1], "steps": steps})
    return cases


if __name__ == "__main__":
    path = Path(__file__).with_name("sampling.json")
    cases = transformers_cases() + derived_cases()
    for case in cases:
        for step in case["steps"]:
            step["logits"] = [float(f"{x:.7g}") for x in step["logits"]]
            step["distribution"] = [[i, float(f"{p:.6g}")] for i, p in step["distribution"]]
    content = {"made_with": f"transformers {transformers.__version__}, torch {torch.__version__}, numpy {np.__version__}", "cases": cases}
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n")
    print(len(cases), "cases", path.stat().st_size, "bytes")
