"""Is a budget kept? Two models, three starting ranks, three rates and up to three seeds, with budgets from 1/16 to 1/2 of the start.

MiniLM learns to tell the classes of questions (accuracy on dev), SmolLM2-135M to write them (loss per token on texts that it has not
seen). Both are scored right before and right after each cut, and at the end.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, environment, finished, save
from runs import logged, measured
from tasks import Examples, Texts, decoder, encoder, examples, fit, moved, score, texts
from transformers import AutoModelForSequenceClassification, PreTrainedModel

import paring
from paring.lead.cutter import Cutter
from paring.methods.spectral import Spectral
from paring.parts.allocate.budget import Share
from paring.train import plan

SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16)
RANKS = (4, 8, 16)
FACTORS = (1 / 3, 1.0, 3.0)


@dataclass(frozen=True, kw_only=True)
class Learner:
    """How a model is trained.

    Attributes:
        rate: the middle one.
        steps: optimizer steps.
        metric: what it is scored by.
        seeds: of the adapter's start and the order of the rows.
    """

    rate: float
    steps: int
    metric: str
    seeds: tuple[int, ...]


LEARNERS = {
    "MiniLM": Learner(rate=1e-3, steps=340, metric="accuracy", seeds=(0, 1, 2)),
    "SmolLM2-135M": Learner(rate=1e-3, steps=48, metric="loss", seeds=(0,)),
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run.

    Attributes:
        model: a key of :data:`LEARNERS`.
        share: the budget, as a share of what the adapter starts with.
        rank: of the start.
        factor: the rate, over the model's own.
        seed: of the adapter's start and the order of the rows.
        dtype, device: ``bf16`` for autocast, and where.
    """

    model: str
    share: float
    rank: int
    factor: float
    seed: int
    dtype: str = "bf16"
    device: str = "cpu"


def jobs() -> list[Job]:
    """Every rank with every rate and seed on both models; the budgets take turns, so that each meets all of them."""
    return [
        Job(model=model, share=SHARES[(i + j + k) % len(SHARES)], rank=rank, factor=factor, seed=seed)
        for model, learner in LEARNERS.items()
        for i, rank in enumerate(RANKS)
        for j, factor in enumerate(FACTORS)
        for k, seed in enumerate(learner.seeds)
    ]


def begun(job: Job, data: Path) -> tuple[PreTrainedModel, str, Examples | Texts, Examples | Texts]:
    """The frozen model, its task type, what is trained on and what is scored."""
    if job.model == "MiniLM":
        torch.manual_seed(job.seed)
        train, held = examples(data, "trec", "train"), examples(data, "trec", "dev")
        return AutoModelForSequenceClassification.from_pretrained(encoder(), num_labels=train.classes), "SEQ_CLS", train, held
    return decoder(), "CAUSAL_LM", texts(data, "trec", "train", 5000), texts(data, "trec", "dev", 100)


@torch.inference_mode()
def language_loss(model: Any, data: Texts, *, device: str, dtype: str) -> float:
    """Mean loss of a token."""
    model.eval()
    total, tokens = 0.0, 0
    for start in range(0, len(data), 32):
        rows = moved(data.batch(list(range(start, min(start + 32, len(data))))), device)
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16"):
            loss = model(**rows).loss
        count = int((rows["labels"][:, 1:] != -100).sum())
        total, tokens = total + float(loss) * count, tokens + count
    return total / tokens


def work(job: Job, data: Path) -> dict[str, Any]:
    """Train one run, and look before and after each cut."""
    learner = LEARNERS[job.model]
    base, task_type, train, held = begun(job, data)
    model = paring.adapt(
        base.to(job.device),  # type: ignore[arg-type]
        Spectral(budget=Share(share=job.share), rank=job.rank, alpha=16, quicken=0.0),
        task_type=task_type,
        seed=job.seed,
    )
    cutter = plan(model, steps=learner.steps)["default"]
    assert isinstance(cutter, Cutter)
    marks = cutter.update.marks(learner.steps)
    path: list[dict[str, Any]] = []

    def metric() -> float:
        if isinstance(held, Texts):
            return language_loss(model, held, device=job.device, dtype=job.dtype)
        return score(model, held, device=job.device, dtype=job.dtype)[0]

    def after(step: int) -> None:
        if step in marks or step + 1 in marks or step == learner.steps:
            path.append({"step": step, "parameters": cutter.parameters, "metric": metric()})
            model.train()

    seconds = fit(
        model,
        train,
        rate=learner.rate * job.factor,
        steps=learner.steps,
        seed=job.seed,
        size=16,
        device=job.device,
        dtype=job.dtype,
        after=after,
    )
    return {
        "job": vars(job),
        "start": cutter.start,
        "budget": int(job.share * cutter.start),
        "parameters": paring.snapshot(model).parameters,
        "reached": next(at["step"] for at in path if at["parameters"] <= job.share * cutter.start) / learner.steps,
        "path": path,
        "seconds": round(seconds, 1),
        "environment": environment(),
    }


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each run, in the order of the jobs."""
    table = []
    for row in rows:
        job = row["job"]
        before, at = (row["path"][-3]["metric"], row["path"][-2]["metric"])
        table.append(
            {
                **{key: job[key] for key in ("model", "share", "rank", "factor", "seed")},
                "rate": LEARNERS[job["model"]].rate * job["factor"],
                "start": row["start"],
                "parameters": row["parameters"],
                "of_budget": row["parameters"] / row["budget"],
                "reached": row["reached"],
                "before": before,
                "at": at,
                "after": row["path"][-1]["metric"],
            }
        )
    return table


def main() -> None:
    """Run what is not in the log yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder with trec/train.tsv and trec/dev.tsv")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--log", type=Path, default=RESULTS / "budgets.jsonl")
    given = parser.parse_args()
    asked = jobs()
    rows = {Job(**row["job"]): row for row in finished(given.log)}
    for job, row in logged(work, [job for job in asked if job not in rows], given.data, workers=given.workers, log=given.log):
        rows[job] = row
        done = sum(job in rows for job in asked)
        print(f"{done} of {len(asked)}: {job.model} r {job.rank} {job.share:g}: {row['parameters']} of {row['budget']}", flush=True)
    found = [rows[job] for job in asked]
    table = summary(found)
    for row in table:
        print(
            f"{row['model']:13} r {row['rank']:2} rate {row['rate']:.0e} seed {row['seed']}  {row['share']:6.4f} of {row['start']}: "
            f"{row['of_budget']:.4f} of the budget at {row['reached']:.0%}; {row['before']:.4f} {row['at']:.4f} {row['after']:.4f}"
        )
    inside = sum(0.95 <= row["of_budget"] <= 1.0 for row in table)
    print(f"{inside} of {len(table)} end in [0.95, 1.00] of the budget")
    save("budgets", {"rows": table, "inside": inside, "metric": {name: one.metric for name, one in LEARNERS.items()}}, measured(found))


if __name__ == "__main__":
    main()
