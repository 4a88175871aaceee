"""What merging costs: three LoRAs of rank 8, each of another task, made into one by every rule, each task scored with its own head.

One LoRA is trained on each of trec, sst2 and banking77, at one rate. Each task is then scored on dev with the head that was trained for it:
on the encoder without an adapter, with its own adapter, and with the merged one. The three start from the same random factors (one seed),
or, with three seeds, from different ones. No setting of a rule was chosen by these scores.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from environment import RESULTS, environment, finished, save
from runs import logged, measured
from tasks import Examples, encoder, examples, fit, score
from transformers import AutoModelForSequenceClassification

import paring
from paring.api import fuse
from paring.core.adapter import Adapter
from paring.exchange.compare import differences
from paring.merge import DARE, SVD, TIES, Concatenation, Lego, Linear, Magnitude, Rule, merge
from paring.methods.lora import LoRA


@dataclass(frozen=True, kw_only=True)
class Task:
    """Rows from the top of the file, and how long is trained."""

    limit: int | None
    steps: int


TASKS = {"trec": Task(limit=None, steps=400), "sst2": Task(limit=5000, steps=400), "banking77": Task(limit=None, steps=800)}
RANK, RATE = 8, 1e-3
NONE, OWN = "no adapter", "own adapter"
SUM = (1.0,) * len(TASKS)
RULES: dict[str, Rule] = {
    "mean of the updates (concatenation)": Concatenation(),
    "sum of the updates (concatenation)": Concatenation(weights=SUM),
    "mean, cut (svd)": SVD(rank=RANK),
    "sum, cut (svd)": SVD(rank=RANK, weights=SUM),
    "means of the factors (linear)": Linear(),
    "ties, density 0.2": TIES(rank=RANK, density=0.2),
    "ties, density 0.5": TIES(rank=RANK, density=0.5),
    "ties on factors, density 0.5": TIES(on="factors", density=0.5),
    "dare, density 0.5": DARE(rank=RANK, density=0.5),
    "dare and ties, density 0.5": DARE(rank=RANK, density=0.5, majority="total"),
    "magnitude, density 0.5": Magnitude(rank=RANK, density=0.5),
    "lego": Lego(rank=RANK),
    "lego, balanced and aligned": Lego(rank=RANK, balance=True, sign_align=True),
    "lego, all units": Lego(rank=RANK * len(TASKS)),
}


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training run.

    Attributes:
        task: a key of :data:`TASKS`.
        seed: of the adapter's start, the head and the order of the rows.
        device, dtype: where, and ``bf16`` for autocast.
    """

    task: str
    seed: int
    device: str = "cpu"
    dtype: str = "bf16"


@dataclass(frozen=True, kw_only=True)
class Merging:
    """One way to serve all tasks.

    Attributes:
        way: a key of :data:`RULES`, or one of the two that merge nothing.
        seed: of the adapters that are merged.
        starts: whether all are of that seed, or one only and the others of the two others.
        device, dtype: where, and ``bf16`` for autocast.
    """

    way: str
    seed: int
    starts: Literal["same", "different"]
    device: str = "cpu"
    dtype: str = "bf16"

    def seeds(self) -> dict[str, int]:
        """The seed of each task's adapter."""
        return {task: self.seed if self.starts == "same" else (self.seed + place - 1) % len(TASKS) for place, task in enumerate(TASKS)}


def place(kept: Path, task: str, seed: int) -> Path:
    """Where a run's adapter is kept."""
    return kept / f"{task}-{seed}"


def train(job: Training, data: Path, *, kept: Path) -> dict[str, Any]:
    """Train one adapter, and keep it."""
    task = TASKS[job.task]
    rows = examples(data, job.task, "train", task.limit)
    torch.manual_seed(job.seed)
    base = AutoModelForSequenceClassification.from_pretrained(encoder(), num_labels=rows.classes).to(job.device)
    model = paring.adapt(base, LoRA(rank=RANK, alpha=2 * RANK), task_type="SEQ_CLS", seed=job.seed)
    seconds = fit(model, rows, rate=RATE, steps=task.steps, seed=job.seed, device=job.device, dtype=job.dtype)
    paring.export(model, place(kept, job.task, job.seed), overwrite=True)
    accuracy, loss = score(model, dev(data, job.task), device=job.device, dtype=job.dtype)
    return {"job": vars(job), "accuracy": accuracy, "loss": loss, "seconds": round(seconds, 1), "environment": environment()}


@functools.cache
def dev(data: Path, task: str) -> Examples:
    """What a task is scored on."""
    return examples(data, task, "dev")


def together(job: Merging, data: Path, *, kept: Path) -> dict[str, Any]:
    """Merge, and score each task with its own head."""
    own = {task: paring.read(place(kept, task, seed)) for task, seed in job.seeds().items()}
    nothing = Adapter(modules={})
    merged = nothing if job.way in (NONE, OWN) else merge(list(own.values()), RULES[job.way])
    scores = {}
    for task, adapter in own.items():
        base = AutoModelForSequenceClassification.from_pretrained(encoder(), num_labels=dev(data, task).classes).to(job.device)
        model = fuse(base, replace(adapter if job.way == OWN else merged, heads=adapter.heads))
        accuracy, loss = score(model, dev(data, task), device=job.device, dtype=job.dtype)
        scores[task] = {"accuracy": accuracy, "loss": loss}
    mean = merge(list(own.values()), Concatenation())
    apart = differences(merged, mean, torch.Generator().manual_seed(0)) if merged.modules else {"": 0.0}
    return {
        "job": vars(job),
        "scores": scores,
        "parameters": merged.parameters,
        "rank": merged.max_rank,
        "from_mean": statistics.median(apart.values()),
        "environment": environment(),
    }


def summary(rows: Mapping[Merging, Mapping[str, Any]], jobs: Sequence[Merging]) -> list[dict[str, Any]]:
    """A row for each way and kind of start, over the seeds."""
    table = []
    for way, starts in dict.fromkeys((job.way, job.starts) for job in jobs):
        found = [rows[job] for job in jobs if (job.way, job.starts) == (way, starts)]
        accuracies = {task: [row["scores"][task]["accuracy"] for row in found] for task in TASKS}
        table.append(
            {
                "way": way,
                "starts": None if way in (NONE, OWN) else starts,
                "rule": RULES[way].encode() if way in RULES else None,
                "rank": max(row["rank"] for row in found),
                "parameters": statistics.fmean(row["parameters"] for row in found),
                "from_mean": statistics.fmean(row["from_mean"] for row in found),
                "accuracy": accuracies,
                "mean": statistics.fmean(statistics.fmean(values) for values in accuracies.values()),
            }
        )
    return table


def main() -> None:
    """Train, merge, score what is not in the log yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder for each task, with train.tsv and dev.tsv")
    parser.add_argument("--adapters", type=Path, default=Path("runs/merging"), help="folder in which the trained adapters are kept")
    parser.add_argument("--seeds", type=int, default=3, help="sets of three adapters with the same start")
    parser.add_argument("--mixed", type=int, default=3, choices=range(4), help="sets with different starts")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--log", type=Path, default=RESULTS / "merging.jsonl")
    given = parser.parse_args()
    sets: dict[Literal["same", "different"], int] = {"same": given.seeds, "different": given.mixed}
    mergings = [
        Merging(way=way, seed=seed, starts=starts, device=given.device)
        for starts, count in sets.items()
        for way in ((NONE, OWN, *RULES) if starts == "same" else RULES)
        for seed in range(count)
    ]
    trainings = list(
        dict.fromkeys(Training(task=task, seed=seed, device=given.device) for one in mergings for task, seed in one.seeds().items())
    )
    before = finished(given.log)

    trained = {Training(**row["job"]): row for row in before if "task" in row["job"]}
    # A line of the log without its adapter is of no use.
    waiting = [job for job in trainings if job not in trained or not place(given.adapters, job.task, job.seed).is_dir()]
    for job, row in logged(functools.partial(train, kept=given.adapters), waiting, given.data, workers=given.workers, log=given.log):
        trained[job] = row
        print(f"{job.task:9} seed {job.seed}: {row['accuracy']:.4f} in {row['seconds']:.0f} s", flush=True)

    rows = {Merging(**row["job"]): row for row in before if "way" in row["job"]}
    work = functools.partial(together, kept=given.adapters)
    todo = [one for one in mergings if one not in rows]
    for one, row in logged(work, todo, given.data, workers=given.workers, log=given.log):
        rows[one] = row
        shown = ", ".join(f"{task} {found['accuracy']:.4f}" for task, found in row["scores"].items())
        print(f"{one.way:36} {one.starts:9} seed {one.seed}: {shown}", flush=True)
    table = summary(rows, mergings)
    for found in table:
        shown = ", ".join(f"{task} {100 * statistics.fmean(values):.2f}" for task, values in found["accuracy"].items())
        print(f"{found['way']:36} {found['starts'] or '':9} {shown}; {100 * found['mean']:.2f}")
    result = {"rows": table, "sets": sets, "rank": RANK, "rate": RATE, "steps": {name: task.steps for name, task in TASKS.items()}}
    used = [*(trained[job] for job in trainings), *(rows[one] for one in mergings)]
    save("merging", result, measured(used))


if __name__ == "__main__":
    main()
