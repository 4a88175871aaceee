"""transformers' Trainer, with the gates in a parameter group of their own and the live ranks in its log.

python examples/with_trainer.py            about a minute on two cores
python examples/with_trainer.py --quick    a few steps
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import small
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, TrainingArguments, set_seed

import paring
from paring.methods.sora import SoRA
from paring.train import ParingTrainer


def main(folder: Path, steps: int) -> None:
    base = small.encoder(folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = Dataset.from_list(small.rows(16 * steps)).map(lambda row: tokenizer(row["text"]), remove_columns=["text"])
    held_out = Dataset.from_list(small.rows(100, seed=1)).map(lambda row: tokenizer(row["text"]), remove_columns=["text"])
    set_seed(0)
    # --8<-- [start:train]
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    model = paring.adapt(model, SoRA(rank=8, alpha=16), task_type="SEQ_CLS")
    arguments = TrainingArguments(
        output_dir=str(folder / "run"),
        learning_rate=1e-3,
        max_steps=steps,
        per_device_train_batch_size=16,
        logging_steps=max(1, steps // 6),
        save_steps=steps,
        report_to="none",
        label_names=["labels"],
    )
    trainer = ParingTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=held_out,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    trainer.train()
    paring.export(model, folder / "adapter", tokenizer=tokenizer)
    # --8<-- [end:train]

    for entry in trainer.state.log_history:
        if "live_ranks" in entry:
            print(f"step {entry['step']:4}  loss {entry['loss']:.3f}  live ranks {entry['live_ranks']}  lambda {entry['lambda']}")
    print(f"loss on held-out rows: {trainer.evaluate()['eval_loss']:.3f}")
    for finding in paring.verify(folder / "adapter", model):
        print(f"{finding.engine:13} {finding.level:8} {finding.message}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place), small.steps(60))
