"""The spectral cut and what one would do without it, at equal sizes on real tasks.

Rivals: LoRA of rank 1, 2 and 8 on all linear modules, the same on the attention alone, LoRA of rank 8 cut at the end to each size by its
singular values, and PEFT's AdaLoRA from rank 8, at LoRA's scale and with the call that it needs. Each has its learning rate, and where it
ends in several sizes one for each, chosen out of four on a tenth of the training rows that it was not trained on. Then each is trained on
all training rows with several seeds and scored once on dev.

At each size, the rival is the one of at most that size that was best on the tenth; the differences are paired by task and seed.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, environment, finished, save
from peft import AdaLoraConfig, PeftModel, get_peft_model
from peft.tuners.adalora import SVDLinear
from runs import logged, measured
from scipy.stats import ttest_1samp
from tasks import Examples, encoder, examples, fit, score, tenth
from transformers import AutoModelForSequenceClassification, PreTrainedModel

import paring
from paring.methods.lora import LoRA
from paring.methods.spectral import Spectral
from paring.parts.allocate.budget import Share
from paring.parts.update.cut import Score
from paring.train import plan
from paring.train.down import shrink

SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16)
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
ALL, ATTENTION = "all-linear", ["query", "key", "value", "attention.output.dense"]
OURS, BY_LOSS = "spectral", "spectral by loss"


@dataclass(frozen=True, kw_only=True)
class Task:
    """Rows from the top of the file, how long is trained, rows of a batch, and ``bf16`` for autocast or ``fp32``.

    The precision is the task's, since not every machine that they were measured on has units for bfloat16; all contestants of a task have
    the same.
    """

    limit: int | None = None
    steps: int = 400
    size: int = 16
    dtype: str = "bf16"


TASKS = {
    "trec": Task(),
    "banking77": Task(steps=800, dtype="fp32"),
    "mrpc": Task(size=8, dtype="fp32"),
    "sst2": Task(limit=5000),
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run.

    Attributes:
        task: a key of :data:`TASKS`.
        contestant: a key of :data:`CONTESTANTS`.
        rate: main learning rate.
        seed: of the adapter's start, the head and the order of the rows.
        held: score on a tenth of the training rows that is not trained on, and leave dev alone.
        device: where.
        size, dtype: the task's.
    """

    task: str
    contestant: str
    rate: float
    seed: int
    held: bool
    device: str
    size: int
    dtype: str


def job_of(task: str, contestant: str, rate: float, seed: int, *, held: bool, device: str) -> Job:
    """A run of a task as the task wants it."""
    of = TASKS[task]
    return Job(task=task, contestant=contestant, rate=rate, seed=seed, held=held, device=device, size=of.size, dtype=of.dtype)


Scored = Callable[[PeftModel], dict[str, float]]
Run = Callable[[PreTrainedModel, Job, Callable[..., float], Scored], list[dict[str, Any]]]
"""Given the base, the job, what trains and what scores: a row for each size that it ends in."""


def lora(rank: int, targets: str | list[str]) -> Run:
    """Plain LoRA."""

    def run(base: PreTrainedModel, job: Job, train: Callable[..., float], scored: Scored) -> list[dict[str, Any]]:
        model = paring.adapt(base, LoRA(rank=rank, alpha=2 * rank), target_modules=targets, task_type="SEQ_CLS", seed=job.seed)
        seconds = train(model)
        return [{"parameters": paring.snapshot(model).parameters, "seconds": seconds, **scored(model)}]

    return run


def full_and_cut(base: PreTrainedModel, job: Job, train: Callable[..., float], scored: Scored) -> list[dict[str, Any]]:
    """LoRA of rank 8, then cut to each of the sizes; the cut of a cut is the cut itself."""
    model = paring.adapt(base, Spectral(budget=Share(share=1.0)), task_type="SEQ_CLS", seed=job.seed)
    plan(model, steps=TASKS[job.task].steps)
    full = paring.snapshot(model).parameters
    seconds = train(model)
    rows = []
    for share in (1.0, *SHARES):
        shrink(model, share * full)
        rows.append({"parameters": paring.snapshot(model).parameters, "seconds": seconds, "share": share, **scored(model)})
    return rows


def spectral(share: float, score: Score = "size") -> Run:
    """The spectral cut to a budget."""

    def run(base: PreTrainedModel, job: Job, train: Callable[..., float], scored: Scored) -> list[dict[str, Any]]:
        model = paring.adapt(base, Spectral(budget=Share(share=share), score=score, quicken=0.0), task_type="SEQ_CLS", seed=job.seed)
        plan(model, steps=TASKS[job.task].steps)
        seconds = train(model)
        return [{"parameters": paring.snapshot(model).parameters, "seconds": seconds, "share": share, **scored(model)}]

    return run


def adalora(target: int) -> Run:
    """PEFT's AdaLoRA from rank 8 to a mean rank of ``target``."""

    def run(base: PreTrainedModel, job: Job, train: Callable[..., float], scored: Scored) -> list[dict[str, Any]]:
        steps = TASKS[job.task].steps
        config = AdaLoraConfig(
            init_r=8,
            target_r=target,
            lora_alpha=16,
            total_step=steps,
            tinit=steps // 10,
            tfinal=steps * 4 // 10,
            deltaT=10,
            target_modules="all-linear",
            task_type="SEQ_CLS",
        )
        torch.manual_seed(job.seed)
        model = get_peft_model(base, config)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=job.rate, weight_decay=0.01)
        seconds = train(model, after=model.base_model.update_and_allocate, optimizer=optimizer)
        kept = 0
        for module in model.modules():
            if isinstance(module, SVDLinear):
                a, b, values = (module.get_submodule(f"lora_{name}").get_parameter("default") for name in "ABE")
                kept += int((values != 0).sum()) * (a.shape[1] + b.shape[0])
        return [{"parameters": kept, "seconds": seconds, **scored(model)}]

    return run


CONTESTANTS: dict[str, Run] = {
    "LoRA r 1": lora(1, ALL),
    "LoRA r 2": lora(2, ALL),
    "LoRA r 8, cut": full_and_cut,
    "LoRA r 1, attention": lora(1, ATTENTION),
    "LoRA r 2, attention": lora(2, ATTENTION),
    "LoRA r 8, attention": lora(8, ATTENTION),
    "AdaLoRA to 1": adalora(1),
    "AdaLoRA to 2": adalora(2),
    "AdaLoRA to 4": adalora(4),
    **{f"{OURS} 1/{round(1 / share)}": spectral(share) for share in SHARES},
    **{f"{BY_LOSS} 1/{round(1 / share)}": spectral(share, "loss") for share in SHARES},
}


def split(data: Path, task: str, *, held: bool) -> tuple[Examples, Examples, int]:
    """What is trained on, what is scored, and the classes: a tenth of the training rows is scored where ``held`` says so, else dev."""
    rows = examples(data, task, "train", TASKS[task].limit)
    if not held:
        return rows, examples(data, task, "dev"), rows.classes
    return *tenth(rows), rows.classes


def work(job: Job, data: Path) -> dict[str, Any]:
    """Train and score one run."""
    train, held, classes = split(data, job.task, held=job.held)
    torch.manual_seed(job.seed)
    base = AutoModelForSequenceClassification.from_pretrained(encoder(), num_labels=classes).to(job.device)

    def trained(model: PeftModel, **more: Any) -> float:
        return _fit(model, train, job, **more)

    def scored(model: PeftModel) -> dict[str, float]:
        accuracy, loss = score(model, held, device=job.device, dtype=job.dtype)
        return {"accuracy": accuracy, "loss": loss}

    return {"job": vars(job), "sizes": CONTESTANTS[job.contestant](base, job, trained, scored), "environment": environment()}


def _fit(model: PeftModel, train: Examples, job: Job, **more: Any) -> float:
    steps = TASKS[job.task].steps
    return fit(model, train, rate=job.rate, steps=steps, seed=job.seed, size=job.size, device=job.device, dtype=job.dtype, **more)


def label(contestant: str, row: dict[str, Any]) -> str:
    """A contestant at one of the sizes that it ends in."""
    if contestant != "LoRA r 8, cut":
        return contestant
    return "LoRA r 8" if row["share"] == 1.0 else f"LoRA r 8, cut to 1/{round(1 / row['share'])}"


def sizes(found: dict[Job, dict[str, Any]], job: Job) -> dict[str, dict[str, Any]]:
    """What a run has ended in, by label."""
    return {label(job.contestant, row): {**row, "rate": job.rate, "contestant": job.contestant} for row in found[job]["sizes"]}


def chosen(found: dict[Job, dict[str, Any]], task: str, device: str) -> dict[str, dict[str, Any]]:
    """For each contestant and size the row of its best rate on the tenth; of equally accurate ones the lower loss."""
    best: dict[str, dict[str, Any]] = {}
    for contestant, rate in itertools.product(CONTESTANTS, RATES):
        for name, row in sizes(found, job_of(task, contestant, rate, 0, held=True, device=device)).items():
            if name not in best or (row["accuracy"], -row["loss"]) > (best[name]["accuracy"], -best[name]["loss"]):
                best[name] = row
    return best


def main() -> None:
    """Search, train, score, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder for each task, with train.tsv and dev.tsv")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--log", type=Path, default=RESULTS / "rivals.jsonl")
    given = parser.parse_args()

    def run(jobs: list[Job]) -> dict[Job, dict[str, Any]]:
        rows = {Job(**row["job"]): row for row in finished(given.log)}
        waiting = [job for job in jobs if job not in rows]
        print(f"{len(waiting)} of {len(jobs)} runs to go", flush=True)
        for job, row in logged(work, waiting, given.data, workers=given.workers, log=given.log):
            rows[job] = row
            shown = ", ".join(f"{one['parameters']}: {one['accuracy']:.4f}" for one in row["sizes"])
            print(
                f"{job.task:9} {job.contestant:20} rate {job.rate:.0e} seed {job.seed} {shown} {row['sizes'][0]['seconds']:.0f} s",
                flush=True,
            )
        return rows

    tasks, names = given.tasks, list(CONTESTANTS)
    searches = [job_of(task, name, rate, 0, held=True, device=given.device) for task, name, rate in itertools.product(tasks, names, RATES)]
    found = run(searches)
    best = {task: chosen(found, task, given.device) for task in tasks}
    finals = {
        (task, name, seed): job_of(task, row["contestant"], row["rate"], seed, held=False, device=given.device)
        for task in tasks
        for name, row in best[task].items()
        for seed in range(given.seeds)
    }
    found = run(list(dict.fromkeys(finals.values())))
    scores = {key: sizes(found, job)[key[1]] for key, job in finals.items()}
    tables = {task: table(best[task], scores, task, given.seeds) for task in tasks}
    for task, rows in tables.items():
        for row in rows:
            print(f"{task:9} {row['contestant']:22} {row['parameters']:8.0f} rate {row['rate']:.0e}  dev {100 * row['mean']:.2f}")
    duels = [duel(best, scores, tasks, ours, share, given.seeds) for ours in (OURS, BY_LOSS) for share in SHARES]
    for row in duels:
        found_at = f"{row['ours']} 1/{round(1 / row['share'])}"
        print(f"{found_at}: {row['difference']:+.2f} points [{row['low']:+.2f}, {row['high']:+.2f}] over {row['rivals']}")
    save("rivals", {"tables": tables, "duels": duels, "rates": RATES}, measured([found[job] for job in finals.values()]))


def table(
    best: dict[str, dict[str, Any]], scores: dict[tuple[str, str, int], dict[str, Any]], task: str, seeds: int
) -> list[dict[str, Any]]:
    """A row for each contestant and size, the largest first."""
    rows = []
    for name, row in best.items():
        found = [scores[task, name, seed] for seed in range(seeds)]
        rows.append(
            {
                "contestant": name,
                "rate": row["rate"],
                "tuning": row["accuracy"],
                "parameters": statistics.fmean(one["parameters"] for one in found),
                "dev": [one["accuracy"] for one in found],
                "mean": statistics.fmean(one["accuracy"] for one in found),
                "seconds": statistics.fmean(one["seconds"] for one in found),
            }
        )
    return sorted(rows, key=lambda one: -one["parameters"])


def duel(
    best: dict[str, dict[str, dict[str, Any]]],
    scores: dict[tuple[str, str, int], dict[str, Any]],
    tasks: list[str],
    engine: str,
    share: float,
    seeds: int,
) -> dict[str, Any]:
    """Ours at a size against the rival of at most that size that was best on the tenth, paired by task and seed; t interval of 95%."""
    ours, differences, rivals = f"{engine} 1/{round(1 / share)}", [], {}
    for task in tasks:
        full = best[task]["LoRA r 8"]["parameters"]
        small = {name: row for name, row in best[task].items() if not name.startswith(OURS) and row["parameters"] <= 1.02 * share * full}
        rivals[task] = max(small, key=lambda name: (small[name]["accuracy"], -small[name]["loss"]))
        differences += [
            100 * (scores[task, ours, seed]["accuracy"] - scores[task, rivals[task], seed]["accuracy"]) for seed in range(seeds)
        ]
    interval = ttest_1samp(differences, 0.0).confidence_interval(0.95)
    return {
        "ours": engine,
        "share": share,
        "rivals": rivals,
        "difference": statistics.fmean(differences),
        "low": float(interval.low),
        "high": float(interval.high),
        "pairs": len(differences),
    }


if __name__ == "__main__":
    main()
