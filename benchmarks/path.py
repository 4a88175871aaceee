"""What a tolerance costs, and what it finds: beside one LoRA of rank 8, beside a sweep of its rank, and beside a budget.

All train on nine tenths of the training rows. Who has something to choose, a rank or a stage, chooses the smallest adapter within one
standard error of the largest one's accuracy, on the tenth that is left. All are scored on dev once they are chosen.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, environment, save
from runs import TASKS, measured, resumed, rows_of
from tasks import encoder, examples, fit, score
from transformers import AutoModelForSequenceClassification

import paring
from paring.method import Method
from paring.methods.lora import LoRA
from paring.methods.spectral import Spectral
from paring.parts.allocate.budget import Share
from paring.path import descend
from paring.train import Halve, Scores, StandardErrors, plan

SWEPT = (1, 2, 4, 8)
LATER = 0.25
REFERENCE, SWEEP, PATH = "LoRA r 8", "LoRA, r 1 to 8 swept", "tolerance 1se"
SLOWER, SLOW = "tolerance 1se, later stages at 0.3 of the rate", 0.3


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run.

    Attributes:
        task: a key of ``TASKS``.
        contestant: ``path``, or a key of :data:`METHODS`.
        seed: of the adapter's start, the head and the order of the rows.
        rate, size: main learning rate, rows of a batch.
        device, dtype: where, and ``bf16`` for autocast.
    """

    task: str
    contestant: str
    seed: int
    rate: float = 1e-3
    size: int = 16
    device: str = "cpu"
    dtype: str = "bf16"


METHODS: dict[str, Method] = {
    **{f"LoRA r {rank}": LoRA(rank=rank, alpha=2 * rank) for rank in SWEPT},
    "budget 1/8": Spectral(budget=Share(share=0.125), quicken=0.0),
    PATH: Spectral(budget=Share(share=1.0), quicken=0.0),
    SLOWER: Spectral(budget=Share(share=1.0), quicken=0.0),
}


TABLED = [name for name in METHODS if name != SLOWER]
"""Those that the table compares; the other is asked for by its name."""


def work(job: Job, data: Path) -> dict[str, Any]:
    """Train, choose by the tenth, score on dev."""
    train, choose = rows_of(data, job.task, True)
    dev = examples(data, job.task, "dev")
    steps = TASKS[job.task].epochs * len(train) // job.size
    torch.manual_seed(job.seed)
    base = AutoModelForSequenceClassification.from_pretrained(encoder(), num_labels=train.classes).to(job.device)
    model = paring.adapt(base, METHODS[job.contestant], task_type="SEQ_CLS", seed=job.seed)

    def trained(steps: int, seed: int, part: float = 1.0) -> None:
        plan(model, steps=steps)
        fit(model, train, rate=part * job.rate, steps=steps, seed=seed, size=job.size, device=job.device, dtype=job.dtype)

    def held_out() -> tuple[float, float]:
        accuracy, _ = score(model, choose, device=job.device, dtype=job.dtype)
        return accuracy, (accuracy * (1 - accuracy) / (len(choose) - 1)) ** 0.5

    def stage(index: int, goal: float) -> None:
        trained(steps if index == 0 else round(LATER * steps), job.seed + index, SLOW if index and job.contestant == SLOWER else 1.0)

    def scores() -> Scores:
        sample = train.take(list(range(min(1000, len(train)))))
        accuracy, error = held_out()
        return Scores(train=score(model, sample, device=job.device, dtype=job.dtype)[0], validation=accuracy, error=error)

    stages: list[dict[str, Any]] = []
    started = time.perf_counter()
    if job.contestant in (PATH, SLOWER):
        with tempfile.TemporaryDirectory() as folder:
            walked = descend(model, stage, scores, folder=folder, tolerance=StandardErrors(count=1.0), descent=Halve())
        seconds = time.perf_counter() - started
        stages = [
            {"parameters": one.parameters, "held_out": one.scores.validation, "train": one.scores.train, "seconds": one.seconds}
            for one in walked.stages
        ]
    else:
        trained(steps, job.seed)
        seconds = time.perf_counter() - started
    accuracy, error = held_out()
    return {
        "job": vars(job),
        "steps": steps,
        "held_out": accuracy,
        "error": error,
        "dev": score(model, dev, device=job.device, dtype=job.dtype)[0],
        "parameters": paring.snapshot(model).parameters,
        "seconds": seconds,
        "stages": stages,
        "environment": environment(),
    }


def swept(rows: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The smallest rank within one standard error of the largest one's, and the time of all."""
    floor = rows[max(rows)]["held_out"] - rows[max(rows)]["error"]
    chosen = rows[min(rank for rank, row in rows.items() if row["held_out"] >= floor)]
    return {**chosen, "seconds": sum(row["seconds"] for row in rows.values())}


def summary(found: dict[Job, dict[str, Any]], task: str, seeds: int) -> list[dict[str, Any]]:
    """A row for each contestant: means over the seeds, and the time over that of the reference of the same seed."""
    by: dict[str, list[dict[str, Any]]] = {
        name: [found[Job(task=task, contestant=name, seed=seed)] for seed in range(seeds)] for name in TABLED
    }
    by[SWEEP] = [swept({rank: by[f"LoRA r {rank}"][seed] for rank in SWEPT}) for seed in range(seeds)]
    table = []
    for name, rows in by.items():
        pairs = list(zip(rows, by[REFERENCE], strict=True))
        table.append(
            {
                "contestant": name,
                "parameters": [row["parameters"] for row in rows],
                "dev": [row["dev"] for row in rows],
                "mean": statistics.fmean(row["dev"] for row in rows),
                "paired_difference_points": statistics.fmean(100 * (row["dev"] - other["dev"]) for row, other in pairs),
                "cost": [row["seconds"] / other["seconds"] for row, other in pairs],
                "stages": [len(row["stages"]) for row in rows],
            }
        )
    return table


def main() -> None:
    """Run what is not in the log yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder for each task, with train.tsv and dev.tsv")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["trec", "sst2"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--contestants", nargs="+", choices=METHODS, help="run only these, print no table")
    parser.add_argument("--log", type=Path, default=RESULTS / "path.jsonl")
    given = parser.parse_args()
    names = given.contestants or TABLED
    asked = [Job(task=task, contestant=name, seed=seed) for seed, task, name in itertools.product(range(given.seeds), given.tasks, names)]

    def told(job: Job, row: dict[str, Any]) -> str:
        return (
            f"{job.task:9} {job.contestant:14} seed {job.seed}: held out {row['held_out']:.4f} dev {row['dev']:.4f} "
            f"{row['parameters']} parameters {row['seconds']:.0f} s, {len(row['stages'])} stages"
        )

    # One at a time: what is compared is time.
    rows = resumed(work, asked, given.data, workers=1, log=given.log, decode=lambda one: Job(**one), tell=told)
    if given.contestants:
        return
    tables = {task: summary(rows, task, given.seeds) for task in given.tasks}
    for task, table in tables.items():
        for row in table:
            cost = f"{statistics.fmean(row['cost']):.2f} [{min(row['cost']):.2f}, {max(row['cost']):.2f}]"
            print(
                f"{task:9} {row['contestant']:22} {statistics.fmean(row['parameters']):8.0f} parameters  dev {100 * row['mean']:.2f} "
                f"({row['paired_difference_points']:+.2f})  cost {cost}"
            )
    save("path", {"tables": tables, "later": LATER}, measured([rows[job] for job in asked]))


if __name__ == "__main__":
    main()
