"""A training loop of your own. Nothing is called after `optimizer.step()`: the proximal step follows it by itself.

python examples/plain_loop.py            about a minute on two cores
python examples/plain_loop.py --quick    a few steps
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import small
import torch
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup, set_seed

import paring
from paring.methods.sora import SoRA
from paring.train import create_optimizer


def main(folder: Path, steps: int) -> None:
    base = small.encoder(folder)
    tokenizer = AutoTokenizer.from_pretrained(base)

    def collate(rows: list[dict[str, str | int]]) -> dict[str, torch.Tensor]:
        texts = tokenizer([str(row["text"]) for row in rows], padding=True, return_tensors="pt")
        return {**texts, "labels": torch.tensor([row["label"] for row in rows])}

    set_seed(0)
    batches = DataLoader(small.rows(16 * steps), batch_size=16, shuffle=True, collate_fn=collate)
    # --8<-- [start:train]
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    model = paring.adapt(model, SoRA(rank=8, alpha=16), task_type="SEQ_CLS", seed=0)
    optimizer = create_optimizer(model, lr=1e-3, weight_decay=0.01)
    scheduler = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=0, num_training_steps=len(batches))

    model.train()
    for batch in batches:
        model(**batch).loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    ranks = paring.ranks(model)
    print(f"{sum(ranks.values())} of {8 * len(ranks)} ranks left in {len(ranks)} modules")
    paring.export(model, folder / "adapter", tokenizer=tokenizer)
    # --8<-- [end:train]

    test = collate(small.rows(200, seed=1))
    model.eval()
    with torch.inference_mode():
        here = model(**test).logits
    # --8<-- [start:load]
    base_model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    loaded = PeftModel.from_pretrained(base_model, folder / "adapter").eval()
    # --8<-- [end:load]
    with torch.inference_mode():
        there = loaded(**test).logits
    print(f"accuracy {(there.argmax(-1) == test['labels']).float().mean():.3f}; loaded by PEFT: equal to {(here - there).abs().max():.0e}")
    assert torch.allclose(here, there, atol=1e-4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place), small.steps(60))
