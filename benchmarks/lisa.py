"""LISA against full fine-tuning and LoRA of rank 8 on trec, and the LoRA that can be extracted out of the first two.

Each way is trained at each of its learning rates and scored on dev; no rate is chosen, so all are told. Out of the weights that were
trained in full a LoRA is extracted at several ranks; what has no place in one (embeddings, norms, biases) is dropped, the classifier is
carried whole.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, environment, save
from runs import measured, resumed, rows_of
from tasks import encoder, fit, score
from transformers import AutoModelForSequenceClassification

import paring
from paring.api import fuse
from paring.compress import ToRank
from paring.methods.lora import LoRA
from paring.train import LISA, create_optimizer

TASK, STEPS, SIZE = "trec", 200, 16
SETTINGS = LISA(layers=2, interval=20)
FULL, SAMPLED, ADAPTER = "full fine-tuning", "LISA, 2 of 6 blocks", "LoRA, rank 8"
RATES: dict[str, tuple[float, ...]] = {FULL: (1e-4, 4e-4), SAMPLED: (1e-4, 4e-4), ADAPTER: (1e-3, 4e-3)}
RANKS = (4, 8, 16, 384)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run.

    Attributes:
        way: a key of :data:`RATES`.
        rate: learning rate.
        seed: of the head, the adapter's start, LISA's draws and the order of the rows.
    """

    way: str
    rate: float
    seed: int


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the tensors that an optimizer keeps between steps."""
    return sum(
        value.numel() * value.element_size() for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)
    )


def start(classes: int, seed: int) -> Any:
    """The encoder with a new head, the same for the same seed."""
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_pretrained(encoder(), num_labels=classes)


def work(job: Job, data: Path) -> dict[str, Any]:
    """Train, score, extract, and score what was extracted."""
    rows, held = rows_of(data, TASK, held=False)
    model: Any = start(rows.classes, job.seed)
    if job.way == ADAPTER:
        model = paring.adapt(model, LoRA(rank=8, alpha=16), task_type="SEQ_CLS", seed=job.seed)
        optimizer = create_optimizer(model, lr=job.rate, weight_decay=0.01)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=job.rate, weight_decay=0.01)
    sampler = replace(SETTINGS, seed=job.seed).start(model, optimizer) if job.way == SAMPLED else None
    peak = [0]

    def after(step: int) -> None:
        peak[0] = max(peak[0], state_bytes(optimizer))

    seconds = fit(model, rows, rate=job.rate, steps=STEPS, seed=job.seed, size=SIZE, optimizer=optimizer, after=after)
    if sampler is not None:
        sampler.stop()
    accuracy, loss = score(model, held, device="cpu", dtype="fp32")
    extracted = {}
    if job.way != ADAPTER:
        for rank in RANKS:
            base = start(rows.classes, job.seed)
            found = paring.extract_lora(base, model, ToRank(rank=rank), task_type="SEQ_CLS", drop_rest=True)
            right, _ = score(fuse(base, found.adapter), held, device="cpu", dtype="fp32")
            lost = sum(loss.error**2 for loss in found.losses.values()) / sum(loss.norm**2 for loss in found.losses.values())
            extracted[str(rank)] = {"accuracy": right, "parameters": found.adapter.parameters, "kept": 1 - lost}
    return {
        "job": vars(job),
        "accuracy": accuracy,
        "loss": loss,
        "seconds": round(seconds, 1),
        "state_bytes": peak[0],
        "extracted": extracted,
        "environment": environment(),
    }


def main() -> None:
    """Train, extract, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder with trec/train.tsv and trec/dev.tsv")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rates", type=int, default=2, help="how many of each way's learning rates")
    parser.add_argument("--log", type=Path, default=RESULTS / "lisa.jsonl")
    given = parser.parse_args()
    rates = {way: found[: given.rates] for way, found in RATES.items()}
    # All ways at their first rates before any at its second.
    places = [(place, way) for place in range(given.rates) for way in rates if place < len(rates[way])]
    jobs = [Job(way=way, rate=rates[way][place], seed=seed) for seed in range(given.seeds) for place, way in places]

    def told(job: Job, row: dict[str, Any]) -> str:
        return f"{job.way:20} rate {job.rate:g} seed {job.seed}: {row['accuracy']:.4f} in {row['seconds']:.0f} s, {row['extracted']}"

    rows = resumed(work, jobs, given.data, workers=1, log=given.log, decode=lambda one: Job(**one), tell=told)
    table = []
    for way, some in rates.items():
        for rate in some:
            found = [rows[job] for job in jobs if (job.way, job.rate) == (way, rate)]
            extracted = {
                rank: {key: [row["extracted"][rank][key] for row in found] for key in ("accuracy", "parameters", "kept")}
                for rank in found[0]["extracted"]
            }
            state = max(row["state_bytes"] for row in found)
            accuracies = [row["accuracy"] for row in found]
            table.append({"way": way, "rate": rate, "accuracy": accuracies, "state_bytes": state, "extracted": extracted})
    result = {"rows": table, "task": TASK, "steps": STEPS, "size": SIZE, "lisa": vars(SETTINGS)}
    save("lisa", result, measured([rows[job] for job in jobs]))


if __name__ == "__main__":
    main()
