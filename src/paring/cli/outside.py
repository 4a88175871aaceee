"""Run by itself, in an environment without paring: loads an adapter with stock PEFT and saves its logits.

Reads a job as JSON from stdin and writes the tensors ``logits`` and ``base`` to the safetensors file that it names. This file imports
nothing of paring: it is run by its path, with an interpreter that does not have the package.
"""

import importlib.util
import json
import sys

if importlib.util.find_spec("paring") is not None:
    sys.exit("this environment has paring, so it proves nothing")

import torch
import transformers
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

MODELS = {"SEQ_CLS": AutoModelForSequenceClassification, "CAUSAL_LM": AutoModelForCausalLM}


def main() -> None:
    """Load, compute, save."""
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    # The head that the base lacks is drawn at random, and then replaced by the adapter's.
    labels = {} if job["labels"] is None else {"num_labels": job["labels"], "ignore_mismatched_sizes": True}
    base = MODELS[job["task_type"]].from_pretrained(job["base"], dtype=torch.float32, **labels)
    base.config.pad_token_id = job["pad"]
    batch = {name: torch.tensor(rows) for name, rows in job.get("inputs", {}).items()}
    if "texts" in job:
        tokenizer = AutoTokenizer.from_pretrained(job["adapter"])
        batch = dict(tokenizer(job["texts"], truncation=True, max_length=job["max_length"], padding=True, return_tensors="pt"))
    with torch.inference_mode():
        before = base.eval()(**batch).logits.float().contiguous()
        model = PeftModel.from_pretrained(base, job["adapter"]).eval()
        after = model(**batch).logits.float().contiguous()
    save_file({"logits": after, "base": before}, job["out"])


main()
