"""Loads the checkpoints that `tests/families.rs` saved with transformers: tensors, keys and logits must be equal.

    cargo test -p llm-model --test families      # saves into target/tmp/families
    python check_families.py TARGET/tmp/families

NAME was loaded and saved with its original `config.json`. NAME-fresh is the same model with a `config.json` that we generated;
there only the logits are compared. NAME-reward and NAME-value have a sequence and a token classification head, if transformers
has such a class.
"""

import pathlib
import sys

import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

HERE = pathlib.Path(__file__).parent / "families"
saved = pathlib.Path(sys.argv[1])
bad = 0
names = sorted(p.name for p in HERE.iterdir())
for name in names:
    fresh = AutoModelForCausalLM.from_pretrained(
        saved / f"{name}-fresh", attn_implementation="eager", experts_implementation="eager"
    ).eval()
    ours, theirs, expected = saved / name, HERE / name, load_file(HERE / name / "expected.safetensors")
    model, info = AutoModelForCausalLM.from_pretrained(
        ours, output_loading_info=True, attn_implementation="eager", experts_implementation="eager"
    )
    problems = {k: v for k, v in info.items() if v}
    a, b = AutoConfig.from_pretrained(ours).to_dict(), AutoConfig.from_pretrained(theirs).to_dict()
    problems |= {k: (a.get(k), b.get(k)) for k in a.keys() | b.keys() if a.get(k) != b.get(k) and k != "_name_or_path"}
    a, b = load_file(ours / "model.safetensors"), load_file(theirs / "model.safetensors")
    problems |= {k: "tensor" for k in a.keys() | b.keys() if k not in a or k not in b or not torch.equal(a[k], b[k])}
    with torch.no_grad():
        far = [(m.eval()(input_ids=expected["long_ids"]).logits - expected["long_logits"]).abs().max() for m in (model, fresh)]
        far = max(far).item()
    for suffix, auto in ("reward", AutoModelForSequenceClassification), ("value", AutoModelForTokenClassification):
        if (saved / f"{name}-{suffix}").exists():
            info = auto.from_pretrained(saved / f"{name}-{suffix}", output_loading_info=True)[1]
            problems |= {f"{suffix} {k}": v for k, v in info.items() if v}
    print(f"{name}: {len(a)} tensors, logits {far:.1e} apart, {'nothing else differs' if not problems else problems}")
    bad += bool(problems) or far > 1e-4
sys.exit(f"{bad} of {len(names)} differ" if bad else 0)
