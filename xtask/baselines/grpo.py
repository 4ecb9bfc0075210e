"""Trains a model with TRL's GRPOTrainer: the baseline of `llm-train grpo` in `cargo xtask bench align`.

    python grpo.py --model DIR --data FILE --steps 5

The rows have a text `prompt`, taken in the order of the file, `--prompts` a step with `--generations` completions each. The reward is the
share of distinct token ids of a completion, so that it costs nothing. Every completion has exactly `--tokens` tokens, as the end token is
not sampled: both programs do the same work. Prints one JSON object.
"""

import argparse
import json
import os
import resource
import statistics
import time


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rank", type=int, default=0, help="rank of a LoRA adapter; 0: all weights")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
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
    with open(args.data, encoding="utf-8") as lines:
        rows = [{"prompt": json.loads(line)["prompt"]} for line in lines][: args.steps * args.prompts]

    def distinct(completion_ids, **_kwargs):
        return [len(set(ids)) / max(len(ids), 1) for ids in completion_ids]

    seconds, rewards = [], []

    class Record(TrainerCallback):
        def on_step_begin(self, *_args, **_kwargs):
            self.start = time.perf_counter()

        def on_step_end(self, *_args, **_kwargs):
            seconds.append(time.perf_counter() - self.start)

        def on_log(self, _args, _state, _control, logs=None, **_kwargs):
            if "reward" in logs:
                rewards.append(float(logs["reward"]))

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=targets, task_type="CAUSAL_LM")
    batch = args.prompts * args.generations
    config = GRPOConfig(
        output_dir="/tmp/grpo-baseline",
        max_steps=args.steps,
        per_device_train_batch_size=batch,
        num_generations=args.generations,
        max_completion_length=args.tokens,
        generation_kwargs={"min_new_tokens": args.tokens},
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        beta=0.0,
        shuffle_dataset=False,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=model,
        args=config,
        reward_funcs=distinct,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora if args.rank else None,
        callbacks=[Record()],
    )
    trainer.train()
    # The first step includes one-time costs.
    mean = statistics.mean(seconds[1:])
    metrics = {
        "tokens_per_second": batch * args.tokens / mean,
        "seconds_per_step": mean,
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "rewards": rewards,
    }
    print(json.dumps(metrics))


if __name__ == "__main__":
    main()
