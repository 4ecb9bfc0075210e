"""Trains on pairs of answers with TRL's DPOTrainer or RewardTrainer, and with `llm-train dpo` or `llm-train reward`.

    python trl_dpo.py --stage dpo --model DIR --data pairs.jsonl --steps 20 --program target/release/llm-train
    python trl_dpo.py --stage reward --model DIR --data pairs.jsonl --steps 20 --program target/release/llm-train

The data are rows of `prompt`, `chosen` and `rejected` (texts, or lists of messages), or of `chosen` and `rejected` as dialogues of HH. The
first `--pairs` rows are the batch of every step, so both programs see equal batches. Both compute in f32 with AdamW (betas 0.9 and 0.999,
epsilon 1e-8, no decay), a constant learning rate, no dropout and no clipping. Both get the prompt that the model's chat template writes,
and answers that end with its end-of-turn token. A reward model starts from the head that `llm-train reward` has at its first step.

Prints one JSON line for each step and program: program, step, loss, seconds, peak_rss in bytes. Without --program only TRL runs; with it
a last line has the largest and the mean relative difference of the losses, and how many times faster and smaller llm-train is.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import tempfile
import time


def messages(text, role):
    """Messages of a text, of a dialogue of HH, or as they are."""
    if isinstance(text, list):
        return [{"role": m["role"], "content": m["content"]} for m in text]
    if not text.lstrip().startswith("Human:"):
        return [{"role": role, "content": text}]
    turns, rest = [], "\n\n" + text.lstrip()
    for part in rest.split("\n\nHuman:")[1:]:
        human, *assistant = part.split("\n\nAssistant:")
        turns.append({"role": "user", "content": human.strip()})
        turns += [{"role": "assistant", "content": answer.strip()} for answer in assistant]
    return turns


def read(path, count):
    """Rows of (prompt messages, chosen, rejected) with different answers that are not empty."""
    rows = []
    for line in open(path, encoding="utf-8"):
        row = json.loads(line)
        chosen, rejected = messages(row["chosen"], "assistant"), messages(row["rejected"], "assistant")
        prompt = messages(row["prompt"], "user") if "prompt" in row else []
        good, bad = chosen.pop(), rejected.pop()
        prompt += chosen
        if good["role"] == bad["role"] == "assistant" and good["content"] != bad["content"] and chosen == rejected:
            if prompt and good["content"].strip() and bad["content"].strip():
                rows.append((prompt, good["content"], bad["content"]))
        if len(rows) == count:
            return rows
    raise SystemExit(f"{path}: {len(rows)} usable pairs; --pairs {count} needs more")


def ours(args, rows, folder, head_only=False):
    """Runs llm-train; returns its lines."""
    data, check = folder / "pairs.jsonl", folder / "validation.jsonl"
    with open(data, "w", encoding="utf-8") as out:
        for prompt, chosen, rejected in rows:
            answer = lambda text: [{"role": "assistant", "content": text}]
            out.write(json.dumps({"prompt": prompt, "chosen": answer(chosen), "rejected": answer(rejected)}) + "\n")
    check.write_text(json.dumps({"prompt": "Hello?", "chosen": "Hello.", "rejected": "No."}) + "\n")
    out = folder / ("head" if head_only else "run")
    learning_rate, epochs = (1e-30, 1) if head_only else (args.learning_rate, args.steps)
    keys = {
        "epochs": epochs, "batch_size": len(rows), "max_length": args.max_length, "eval_every": 0, "save_every": 0,
        "optimizer.learning_rate": learning_rate, "optimizer.schedule": '"constant"', "optimizer.warmup_steps": 0,
        "optimizer.beta1": 0.9, "optimizer.beta2": 0.999, "optimizer.eps": 1e-8, "optimizer.weight_decay": 0.0,
        "optimizer.max_grad_norm": 0.0, "optimizer.precision": '"f32"',
    }
    if args.stage == "dpo":
        keys |= {"loss": f'"{args.loss}"', "beta": args.beta, "label_smoothing": args.label_smoothing}
    else:
        keys |= {"center_rewards_coefficient": 0.0}
    command = [args.program, "--threads", str(args.threads), args.stage, "--model", args.model, "--data", data]
    command += ["--validation", check, "--out", out]
    for key, value in keys.items():
        command += ["--set", f"{key}={value}"]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    steps = [json.loads(line) for line in open(out / "metrics.jsonl")]
    memory, before, lines = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, 0.0, []
    for step in steps:
        if "grad_norm" in step:
            # Without the evaluation before it.
            seconds = step["tokens"] / step["tokens_per_second"]
            lines.append(line("llm-train", step["step"], step["loss"], seconds, memory))
    return lines


def line(program, step, loss, seconds, peak_rss):
    return {"program": program, "step": step, "loss": loss, "seconds": round(seconds, 4), "peak_rss": peak_rss}


def trl(args, rows, start):
    """Trains with TRL from the model in the folder `start`; returns its lines."""
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    data = []
    for prompt, chosen, rejected in rows:
        # A text for a text: the template would write more after the end of the turn.
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        end = tokenizer.eos_token
        data.append({"prompt": text, "chosen": chosen + end, "rejected": rejected + end})
    settings = dict(
        output_dir=tempfile.mkdtemp(), max_steps=args.steps, per_device_train_batch_size=len(data),
        learning_rate=args.learning_rate, lr_scheduler_type="constant", weight_decay=0.0, adam_beta1=0.9,
        adam_beta2=0.999, adam_epsilon=1e-8, max_grad_norm=0.0, max_length=args.max_length, bf16=False, use_cpu=True,
        gradient_checkpointing=False, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
    )
    lines, began = [], [0.0]

    class Record(TrainerCallback):
        def on_step_begin(self, *_args, **_kwargs):
            began[0] = time.perf_counter()

        def on_step_end(self, *_args, **_kwargs):
            began.append(time.perf_counter() - began[0])

        def on_log(self, _args, state, _control, logs=None, **_kwargs):
            if "loss" in logs:
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                lines.append(line("trl", state.global_step, float(logs["loss"]), began[-1], memory))
                print(json.dumps(lines[-1]), flush=True)

    if args.stage == "dpo":
        model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
        config = DPOConfig(loss_type=[args.loss], beta=args.beta, label_smoothing=args.label_smoothing, **settings)
        base = DPOTrainer
    else:
        model = AutoModelForSequenceClassification.from_pretrained(start, num_labels=1, dtype=torch.float32)
        config, base = RewardConfig(**settings), RewardTrainer

    class InOrder(base):
        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(dataset if dataset is not None else self.train_dataset)

    trainer = InOrder(
        model=model, args=config, train_dataset=Dataset.from_list(data), processing_class=tokenizer, callbacks=[Record()]
    )
    trainer.train()
    return lines


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--stage", choices=["dpo", "reward"], default="dpo")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--program")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--loss", default="sigmoid")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--label-smoothing", type=float, default=0.0)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    rows = read(args.data, args.pairs)
    with tempfile.TemporaryDirectory() as folder:
        folder, start, mine = pathlib.Path(folder), args.model, []
        if args.program:
            mine = ours(args, rows, folder)
            if args.stage == "reward":
                ours(args, rows, folder, head_only=True)
                start = folder / "head"
        elif args.stage == "reward":
            raise SystemExit("--stage reward needs --program, whose first head TRL starts from")
        for step in mine:
            print(json.dumps(step), flush=True)
        theirs = trl(args, rows, start)
    if mine:
        gaps = [abs(a["loss"] - b["loss"]) / abs(b["loss"]) for a, b in zip(mine, theirs, strict=True)]
        # The first step includes one-time costs.
        times = [statistics.mean(step["seconds"] for step in lines[1:]) for lines in (mine, theirs)]
        print(json.dumps({
            "largest_difference": max(gaps), "mean_difference": statistics.mean(gaps), "times_as_fast": times[1] / times[0],
            "memory_ratio": mine[-1]["peak_rss"] / theirs[-1]["peak_rss"],
        }))


if __name__ == "__main__":
    main()
