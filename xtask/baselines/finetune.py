"""Fine-tunes a model with TRL's SFTTrainer: the baseline of `llm-train bench-finetune`.

    python finetune.py --model DIR --data FILE --mode full --steps 50

The rows are conversations (`messages`), taken in the order of the file, `--batch-size` a step. The loss counts the content of assistant
messages and the token that ends them, so the chat template must write messages as `<|im_start|>role\\ncontent<|im_end|>\\n`.
Modes: full, lora, and each with `-checkpointed` (gradient checkpointing, which is TRL's default). bf16 is autocast on f32 weights.
Prints one JSON object with the keys of `llm-train bench-finetune`.
"""

import argparse
import json
import os
import resource
import statistics
import time

TEMPLATE = """\
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' -}}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}
{{- '<|im_start|>assistant\\n' -}}{% generation %}{{- message['content'] ~ '<|im_end|>' -}}{% endgeneration %}{{- '\\n' -}}
{%- else -%}
{{- '<|im_start|>' ~ message['role'] ~ '\\n' ~ message['content'] ~ '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--mode", default="full")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ["HF_HUB_OFFLINE"] = "1"

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tokenizer.chat_template = TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    with open(args.data, encoding="utf-8") as lines:
        rows = [{"messages": json.loads(line)["messages"]} for line in lines]
    rows = rows[: args.steps * args.batch_size]

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(dataset if dataset is not None else self.train_dataset)

    seconds, losses = [], []

    class Record(TrainerCallback):
        def on_step_begin(self, *_args, **_kwargs):
            self.start = time.perf_counter()

        def on_step_end(self, *_args, **_kwargs):
            seconds.append(time.perf_counter() - self.start)

        def on_log(self, _args, _state, _control, logs=None, **_kwargs):
            if "loss" in logs:
                losses.append(float(logs["loss"]))

    mode, _, checkpointed = args.mode.partition("-")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=targets, task_type="CAUSAL_LM")
    config = SFTConfig(
        output_dir="/tmp/finetune-baseline",
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        adam_beta2=0.95,
        max_length=None,
        assistant_only_loss=True,
        bf16=True,
        use_cpu=True,
        gradient_checkpointing=checkpointed == "checkpointed",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = InOrder(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora if mode == "lora" else None,
        callbacks=[Record()],
    )
    trained = sum(sum(label >= 0 for label in row["labels"]) for row in trainer.train_dataset)
    tokens = [len(row["input_ids"]) for row in trainer.train_dataset]
    trainer.train()
    # The first step includes one-time costs.
    metrics = {
        "tokens_per_second": sum(tokens[args.batch_size :]) / sum(seconds[1:]),
        "seconds_per_step": statistics.mean(seconds[1:]),
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "tokens": sum(tokens),
        "trained_tokens": trained,
        "losses": losses,
    }
    print(json.dumps(metrics))


if __name__ == "__main__":
    main()
