"""What was tried to help the spectral cut on real tasks: each variant beside the plain cut, at one rate, scored on a tenth of the rows.

The tenth of the training rows is the one that learning rates are chosen on in `rivals.py`; dev is left alone. Differences are to the plain
cut, paired by task, size and seed.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, environment, save
from rivals import TASKS, split
from runs import measured, resumed
from tasks import How, batches, encoder, fit, moved, score
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from variants import VARIANTS, Look, Variant, varied

import paring
from paring.parts.allocate.budget import Share

PLAIN = "plain"
"""Three cuts by size whose steps are left alone: what every variant is held against."""

CONTESTANTS = {PLAIN: Variant(), **VARIANTS}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run.

    Attributes:
        task: a key of :data:`rivals.TASKS`.
        variant: a key of :data:`CONTESTANTS`.
        share: of the parameters of LoRA of rank 8 that are left at the end.
        rate: of the adapter.
        head: of the head, the same for all.
        seed: of the adapter's start, the head and the order of the rows.
        device, dtype: where, and ``bf16`` for autocast or ``fp32``.
    """

    task: str
    variant: str
    share: float
    rate: float
    head: float
    seed: int
    device: str
    dtype: str


def work(job: Job, data: Path) -> dict[str, Any]:
    """Train and score one run."""
    of = TASKS[job.task]
    train, held, classes = split(data, job.task, held=True)
    torch.manual_seed(job.seed)
    base = AutoModelForSequenceClassification.from_pretrained(encoder(), num_labels=classes).to(job.device)

    def loss(model: nn.Module, rows: list[int]) -> Tensor:
        found: Tensor = model(**moved(train.batch(rows), job.device)).loss
        return found

    look = Look(list(itertools.islice(batches(train, of.size, torch.Generator().manual_seed(job.seed)), 8)), loss)
    variant, size = CONTESTANTS[job.variant], Share(share=job.share)
    model = varied(base, variant, size, steps=of.steps, seed=job.seed, look=look, task_type="SEQ_CLS")
    how = How(device=job.device, dtype=job.dtype)
    seconds = fit(model, train, rate=job.rate, head=job.head, steps=of.steps, size=of.size, seed=job.seed, **how)
    accuracy, entropy = score(model, held, **how)
    return {
        "job": vars(job),
        "accuracy": accuracy,
        "loss": entropy,
        "parameters": paring.snapshot(model).parameters,
        "seconds": seconds,
        "environment": environment(),
    }


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder for each task, with train.tsv and dev.tsv")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["trec", "sst2"])
    parser.add_argument("--variants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--shares", type=float, nargs="+", default=[1 / 8, 1 / 16])
    parser.add_argument("--rate", type=float, default=1e-3, help="of the adapter")
    parser.add_argument("--head", type=float, default=1e-2, help="rate of the head")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="bf16: autocast")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--log", type=Path, default=RESULTS / "tried.jsonl")
    given = parser.parse_args()
    names = list(dict.fromkeys([PLAIN, *given.variants]))
    jobs = [
        Job(task=task, variant=name, share=share, rate=given.rate, head=given.head, seed=seed, device=given.device, dtype=given.dtype)
        for seed, task, share, name in itertools.product(range(given.seeds), given.tasks, given.shares, names)
    ]
    found = resumed(work, jobs, given.data, workers=given.workers, log=given.log, decode=lambda one: Job(**one), tell=told)
    rows = summary(found)
    for row in rows:
        print(f"{row['task']:9} {row['share']:.4f} {row['variant']:18} {100 * row['mean']:.2f}  {row['difference']:+.2f} points")
    about = {"plain": PLAIN, "rate": given.rate, "head": given.head, "dtype": given.dtype}
    save("tried", {"rows": rows, **about}, measured(list(found.values())))


def told(job: Job, row: dict[str, Any]) -> str:
    """A line for a run that has ended."""
    return (
        f"{job.task:9} {job.variant:18} {job.share:.4f} seed {job.seed}: accuracy {row['accuracy']:.4f} loss {row['loss']:.4f} "
        f"parameters {row['parameters']} {row['seconds']:.0f} s"
    )


def summary(found: dict[Job, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each task, size and variant, over seeds."""
    groups: dict[tuple[str, float, str], list[Job]] = {}
    for job in found:
        groups.setdefault((job.task, job.share, job.variant), []).append(job)
    rows = []
    for (task, share, variant), jobs in groups.items():
        plain = {job.seed: found[job]["accuracy"] for job in groups[task, share, PLAIN]}
        differences = [100 * (found[job]["accuracy"] - plain[job.seed]) for job in jobs]
        rows.append(
            {
                "task": task,
                "share": share,
                "variant": variant,
                "accuracy": [found[job]["accuracy"] for job in jobs],
                "mean": statistics.fmean(found[job]["accuracy"] for job in jobs),
                "differences": differences,
                "difference": statistics.fmean(differences),
                "parameters": statistics.fmean(found[job]["parameters"] for job in jobs),
                "seconds": statistics.fmean(found[job]["seconds"] for job in jobs),
            }
        )
    return rows


if __name__ == "__main__":
    main()
