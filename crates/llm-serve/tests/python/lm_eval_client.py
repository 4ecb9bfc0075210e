"""lm-evaluation-harness, unchanged, against a server: `lm_eval_client.py BASE LINES` with one JSON object {"text", "end"} a line.

Prints the log-probability of each continuation and whether it is the greedy one, as JSON.
"""

import json
import os
import pathlib
import sys
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

base, lines = sys.argv[1], sys.argv[2]
with tempfile.TemporaryDirectory() as folder:
    os.environ["HF_HOME"] = folder + "/cache"
    data = pathlib.Path(folder, "data.jsonl")
    data.write_text(lines + "\n")
    pathlib.Path(folder, "mine.yaml").write_text(f"""
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {folder}/data}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{end}}}}"
target_delimiter: ""
metric_list:
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
""")
    results = simple_evaluate(
        model="local-completions",
        model_args=f"model=tiny,base_url={base}/v1/completions,num_concurrent=2,tokenizer_backend=remote,max_length=512,max_retries=1",
        tasks=["mine"],
        task_manager=TaskManager(include_path=folder),
        log_samples=True,
        bootstrap_iters=0,
    )
    samples = sorted(results["samples"]["mine"], key=lambda sample: sample["doc_id"])
    print(json.dumps([sample["resps"][0][0] for sample in samples]))
