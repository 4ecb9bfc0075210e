"""Trains a model with TRL's GRPOTrainer and with `llm-train grpo`.

    python trl_grpo.py --model DIR --data prompts.jsonl --steps 5 --program target/release/llm-train

The rows have a `prompt` (a text, or messages), or a `question` as GSM8K. A step samples `--generations` completions of at most `--tokens`
tokens for each of `--prompts` prompts, and trains on them once, in f32. The reward punishes repetition, so that it costs next to nothing.
Completions are random, so the programs are compared by completion tokens per second, sampling and training together.

Prints one JSON line for each step and program: program, step, reward, tokens, seconds, peak_rss in bytes. Without --program only TRL
runs; with it a last line says how many times faster and smaller llm-train is.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import tempfile
import time


def read(path, count):
    """The first prompts, as messages."""
    prompts = []
    for line in open(path, encoding="utf-8"):
        row = json.loads(line)
        prompt = row.get("prompt", row.get("question"))
        prompts.append([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)
        if len(prompts) == count:
            return prompts
    raise SystemExit(f"{path}: {len(prompts)} prompts; this needs {count}")


def line(program, step, reward, tokens, seconds, peak_rss):
    values = {"step": step, "reward": reward, "tokens": tokens, "seconds": round(seconds, 4), "peak_rss": peak_rss}
    return {"program": program, **values}


def ours(args, prompts, folder):
    """Runs llm-train; returns its lines."""
    data, out = folder / "prompts.jsonl", folder / "run"
    data.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
    keys = {
        "updates": args.steps, "prompts_per_update": args.prompts, "num_generations": args.generations,
        "max_new_tokens": args.tokens, "micro_batch_size": args.micro_batch_size, "save_every": 0, "beta": 0.0,
        "optimizer.learning_rate": 1e-6, "optimizer.schedule": '"constant"', "optimizer.precision": '"f32"',
        "rewards": '[{ kind = "repetition", ngram = 2 }]',
    }
    if args.rank:
        keys |= {"lora.r": args.rank, "lora.lora_alpha": 2 * args.rank, "lora.target_modules": '"all-linear"'}
    command = [args.program, "--threads", args.threads, "grpo", "--model", args.model, "--data", data, "--out", out]
    for key, value in keys.items():
        command += ["--set", f"{key}={value}"]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    steps = [row for row in map(json.loads, open(out / "metrics.jsonl")) if "grad_norm" in row]
    return [
        line("llm-train", row["step"], row["reward"], row["tokens"], row["tokens"] / row["tokens_per_second"], memory)
        for row in steps
    ]


def trl(args, prompts):
    """Trains with TRL; returns its lines."""
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    lines, seconds, counts = [], [0.0], [0]

    def repetition(completion_ids, **_kwargs):
        counts.append(sum(map(len, completion_ids)))
        pairs = [list(zip(ids, ids[1:])) for ids in completion_ids]
        return [len(set(of)) / max(len(of), 1) - 1 for of in pairs]

    class Record(TrainerCallback):
        def on_step_begin(self, *_args, **_kwargs):
            self.start = time.perf_counter()

        def on_step_end(self, *_args, **_kwargs):
            seconds.append(time.perf_counter() - self.start)

        def on_log(self, _args, state, _control, logs=None, **_kwargs):
            if "reward" in logs:
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                lines.append(line("trl", state.global_step, logs["reward"], counts[-1], seconds[-1], memory))

    batch = args.prompts * args.generations
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(), max_steps=args.steps, per_device_train_batch_size=args.micro_batch_size,
        gradient_accumulation_steps=batch // args.micro_batch_size, num_generations=args.generations,
        max_completion_length=args.tokens, learning_rate=1e-6, lr_scheduler_type="constant", beta=0.0, use_cpu=True,
        bf16=False, gradient_checkpointing=False, logging_steps=1, save_strategy="no", report_to="none",
        disable_tqdm=True,
    )
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=targets, task_type="CAUSAL_LM")
    trainer = GRPOTrainer(
        model=model, args=config, reward_funcs=repetition, processing_class=tokenizer, callbacks=[Record()],
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        peft_config=lora if args.rank else None,
    )
    trainer.train()
    return lines


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--program")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--micro-batch-size", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rank", type=int, default=0, help="rank of a LoRA adapter; 0: all weights")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    prompts, mine = read(args.data, args.steps * args.prompts), []
    if args.program:
        with tempfile.TemporaryDirectory() as folder:
            mine = ours(args, prompts, pathlib.Path(folder))
    for step in mine:
        print(json.dumps(step), flush=True)
    theirs = trl(args, prompts)
    for step in theirs:
        print(json.dumps(step), flush=True)
    if mine:
        # The first step includes one-time costs.
        rates = [
            sum(step["tokens"] for step in lines[1:]) / sum(step["seconds"] for step in lines[1:])
            for lines in (mine, theirs)
        ]
        memory = mine[-1]["peak_rss"] / theirs[-1]["peak_rss"]
        print(json.dumps({"tokens_per_second": rates, "times_as_fast": rates[0] / rates[1], "memory_ratio": memory}))


if __name__ == "__main__":
    main()
