"""sentence-transformers: the adapter goes on by `add_adapter`, the mixin before its trainer.

python examples/with_sentence_transformers.py            about a minute on two cores
python examples/with_sentence_transformers.py --quick    a few steps
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import small
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from transformers import set_seed

import paring
from paring.methods.sora import SoRA
from paring.train import ParingTrainerMixin


# --8<-- [start:class]
class ParingSentenceTransformerTrainer(ParingTrainerMixin, SentenceTransformerTrainer):
    """SentenceTransformerTrainer with the gates in a parameter group of their own."""


# --8<-- [end:class]


def pairs(count: int, seed: int) -> Dataset:
    """Two sentences each, and 1 if they agree."""
    left, right = small.rows(count, seed), small.rows(count, seed + 1)
    return Dataset.from_list(
        [
            {"sentence1": a["text"], "sentence2": b["text"], "score": float(a["label"] == b["label"])}
            for a, b in zip(left, right, strict=True)
        ]
    )


def main(folder: Path, steps: int) -> None:
    set_seed(0)
    base = small.encoder(folder)
    rows = pairs(8 * steps, 0)
    # --8<-- [start:train]
    model = SentenceTransformer(base)
    model.add_adapter(paring.ParingConfig(method=SoRA(rank=8, alpha=16), task_type="FEATURE_EXTRACTION"))
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "run"),
        learning_rate=1e-3,
        max_steps=steps,
        per_device_train_batch_size=8,
        logging_steps=max(1, steps // 6),
        save_strategy="no",
        report_to="none",
    )
    trainer = ParingSentenceTransformerTrainer(model=model, args=arguments, train_dataset=rows, loss=CosineSimilarityLoss(model))
    trainer.train()
    paring.export(model[0].auto_model, folder / "adapter")
    # --8<-- [end:train]

    for entry in trainer.state.log_history:
        if "live_ranks" in entry:
            print(f"step {entry['step']:4}  loss {entry['loss']:.3f}  live ranks {entry['live_ranks']}")
    texts = [str(row["text"]) for row in small.rows(8, seed=5)]
    # --8<-- [start:load]
    loaded = SentenceTransformer(base)
    loaded.load_adapter(str(folder / "adapter"))
    # --8<-- [end:load]
    here, there = (each.encode(texts, convert_to_tensor=True) for each in (model, loaded))
    plain = SentenceTransformer(base).encode(texts, convert_to_tensor=True)
    print(f"loaded by sentence-transformers: equal to {(here - there).abs().max():.0e}; moved by {(there - plain).abs().max():.2f}")
    assert torch.allclose(here, there, atol=1e-4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place), small.steps(60))
