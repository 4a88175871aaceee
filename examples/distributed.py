"""Several processes train one adapter: each on its share of the rows (DDP), with a frozen model in shards where it is large (FSDP2).

torchrun --nproc_per_node 2 examples/distributed.py                                        DDP
accelerate launch --multi_gpu --num_processes 2 examples/distributed.py                    the same, also without GPUs
accelerate launch --config_file examples/fsdp2.yaml examples/distributed.py                FSDP2
python examples/distributed.py                                                             one process, the same rows in each step

`--quick` takes a few steps, `--tiny` a model of a moment; `--output_dir` keeps what was trained, `--resume` goes on from the last
checkpoint in it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import small
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, TrainingArguments, set_seed

import paring
from paring.methods.sora import SoRA
from paring.train import ParingTrainer

ROWS = 32
"""Rows in a step, of all processes together."""


def main(folder: Path, steps: int, tiny: bool, resume: bool) -> None:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    # Where the encoder is made here, each process makes its own, from one seed.
    set_seed(0)
    base = small.encoder(folder / f"base-{os.environ.get('RANK', '0')}", tiny)
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = Dataset.from_list(small.rows(ROWS * steps)).map(lambda row: tokenizer(row["text"]), remove_columns=["text"])
    set_seed(0)
    # --8<-- [start:train]
    # Without dropout, of which each process draws its own, any number of processes trains the same.
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    # The seed makes the start the same in all processes.
    model = paring.adapt(model, SoRA(rank=8, alpha=16), task_type="SEQ_CLS", seed=0)
    arguments = TrainingArguments(
        output_dir=str(folder / "run"),
        learning_rate=1e-3,
        max_steps=steps,
        per_device_train_batch_size=ROWS // processes,
        logging_steps=max(1, steps // 6),
        save_steps=max(1, steps // 2),
        report_to="none",
        # Without GPUs this must be said, or Trainer does not see the other processes, and each trains alone.
        use_cpu=not torch.accelerator.is_available(),
        # The loss of a head is a mean over rows already; Trainer would multiply it by the number of processes.
        average_tokens_across_devices=False,
    )
    trainer = ParingTrainer(
        model=model, args=arguments, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer), processing_class=tokenizer
    )
    trainer.train(resume_from_checkpoint=resume)
    # Shards are gathered by all processes together, and one of them writes. Replicas are alike, so one exports.
    if trainer.is_fsdp_enabled or trainer.is_world_process_zero():
        paring.export(trainer.model, folder / "adapter", tokenizer=tokenizer)
    # --8<-- [end:train]

    if trainer.is_world_process_zero():
        print(f"trained by {arguments.world_size}")
        for entry in trainer.state.log_history:
            if "live_ranks" in entry:
                print(f"step {entry['step']:4}  loss {entry['loss']:.3f}  live ranks {entry['live_ranks']}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--tiny", action="store_true", help="a tiny encoder with random weights")
    parser.add_argument("--output_dir", type=Path, help="keep what was trained in this folder")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --output_dir")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        main(given.output_dir or Path(place), 6 if given.quick else 60, given.tiny, given.resume)
