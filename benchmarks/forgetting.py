"""Two of 77 classes are forgotten by a trained encoder while the others stay: how many blocks does it take?

MiniLM learns banking77 (LoRA on all linear modules and the head, merged). Then an adapter on the two feed-forward modules of each of its
six blocks is trained to forget two classes, the head as it is: batches of 16 rows that stay and 8 to forget, cross-entropy of the first
and the bounded loss of the second. GS-LoRA at several penalties beside LoRA with the same losses, LoRA with the sum of the blocks' norms in
the loss as in the released code, and GS-LoRA with the prototypes of GS-LoRA++.

Each seed has its own base, classes and order of rows. Scored on dev: the 40 rows of the two classes, and all others.
"""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from environment import environment, finished, save
from runs import arguments, logged, measured
from tasks import Examples, batches, examples, fit, moved, score, train
from torch import Tensor
from transformers import PreTrainedModel

import paring
from paring.attach.find import slots
from paring.method import Method
from paring.methods.gs_lora import GSLoRA
from paring.methods.lora import LoRA
from paring.parts.update.lasso import GroupLasso
from paring.train.forget import Forgetting, class_means

TASK, CLASSES, FORGOTTEN = "banking77", 77, 2
BASE_STEPS, BASE_RATE = 800, 3e-3
TARGETS = r".*encoder\.layer\.\d+\.(intermediate|output)\.dense"
STAY, GO = 16, 8
PENALTIES = (5.0, 10.0, 20.0, 40.0, 80.0)
IN_LOSS = (0.01, 0.1, 1.0)
BEST = 20.0
"""Of GS-LoRA, where the prototypes are tried."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run.

    Attributes:
        contestant: a key of :data:`CONTESTANTS`.
        seed: of the base, the classes, the adapter's start and the order of the rows.
        steps, rate: of forgetting.
        device, dtype: where, and ``bf16`` for autocast.
    """

    contestant: str
    seed: int
    steps: int
    rate: float
    device: str
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """How it is forgotten.

    Attributes:
        method: of the adapter.
        in_loss: weight of the sum of the blocks' norms in the loss.
        prototypes: whether the terms of GS-LoRA++ are added.
    """

    method: Method
    in_loss: float = 0.0
    prototypes: bool = False


CONTESTANTS = {
    "LoRA": Contestant(method=LoRA(rank=8)),
    **{f"LoRA, norms in the loss x {weight:g}": Contestant(method=LoRA(rank=8), in_loss=weight) for weight in IN_LOSS},
    **{f"GS-LoRA {penalty:g}": Contestant(method=GSLoRA(rank=8, penalty=penalty)) for penalty in PENALTIES},
    f"GS-LoRA {BEST:g}, prototypes": Contestant(method=GSLoRA(rank=8, penalty=BEST), prototypes=True),
}


@functools.cache
def _rows(data: Path) -> tuple[Examples, Examples]:
    return examples(data, TASK, "train"), examples(data, TASK, "dev")


@functools.cache
def _base(data: Path, seed: int, device: str, dtype: str) -> PreTrainedModel:
    """What knows all classes; never trained itself again."""
    rows, _ = _rows(data)
    run = train(LoRA(rank=8), rows, rate=BASE_RATE, steps=BASE_STEPS, seed=seed, classes=CLASSES, device=device, dtype=dtype)
    merged: PreTrainedModel = run.model.merge_and_unload()
    return merged.requires_grad_(False)


def work(job: Job, data: Path) -> dict[str, Any]:
    """Forget, and score before and after."""
    contestant, how = CONTESTANTS[job.contestant], {"device": job.device, "dtype": job.dtype}
    rows, dev = _rows(data)
    base = _base(data, job.seed, job.device, job.dtype)
    known = {name: value.clone() for name, value in base.state_dict().items()}
    generator = torch.Generator().manual_seed(job.seed)
    classes = tuple(sorted(torch.randperm(CLASSES, generator=generator)[:FORGOTTEN].tolist()))
    stay, go = _parts(dev, classes)

    def scored(model: Any, when: str) -> dict[str, Any]:
        found = {}
        for name, part in (("forgotten", go), ("remaining", stay)):
            accuracy, loss = score(model, dev.take(part), **how)
            found |= {f"{name}_{when}": accuracy, f"{name}_loss_{when}": loss}
        return found

    before = scored(base, "before")
    prototypes = (
        class_means(base, (moved(rows.batch(index), job.device) for index in _once(rows)), CLASSES) if contestant.prototypes else None
    )
    loss = Forgetting(classes=classes, prototypes=prototypes)
    model = paring.adapt(base, contestant.method, target_modules=TARGETS, seed=job.seed)
    blocks = GroupLasso(weight=1.0).groups(slots(model))
    factors = {name: [slots(model)[path].get_parameter(factor) for path, factor in members] for name, members in blocks.items()}

    def loss_of(outputs: Any, labels: Tensor) -> Tensor:
        total: Tensor = loss(outputs, labels)
        if contestant.in_loss:
            total = total + contestant.in_loss * sum(torch.stack([p.norm() for p in group]).norm() for group in factors.values())
        return total

    order = _mixed(rows, classes, generator)
    seconds = fit(model, rows, rate=job.rate, steps=job.steps, seed=job.seed, loss_of=loss_of, order=order, **how)
    after = scored(model, "after")
    adapter = paring.snapshot(model)
    norms = {name: float(torch.stack([p.detach().norm() for p in group]).norm()) for name, group in factors.items()}
    live = sum(any(adapter.ranks[path] for path, _ in members) for members in blocks.values())
    untouched = model.unload()
    assert all(torch.equal(value, known[name]) for name, value in untouched.state_dict().items()), "the base was changed"
    return {
        "job": vars(job),
        "classes": classes,
        **before,
        **after,
        "blocks": live,
        "of": len(blocks),
        "norms": norms,
        "parameters": adapter.parameters,
        "seconds": round(seconds, 1),
        "environment": environment(),
    }


def _parts(rows: Examples, classes: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """The rows that stay, and those to forget."""
    go = [index for index, label in enumerate(rows.labels) if label in classes]
    return [index for index, label in enumerate(rows.labels) if label not in classes], go


def _mixed(rows: Examples, classes: tuple[int, ...], generator: torch.Generator) -> Iterator[list[int]]:
    """Batches with rows of both kinds."""
    stay, go = _parts(rows, classes)
    kept, gone = batches(rows.take(stay), STAY, generator), batches(rows.take(go), GO, generator)
    for some, others in zip(kept, gone, strict=True):
        yield [stay[index] for index in some] + [go[index] for index in others]


def _once(rows: Examples, size: int = 64) -> Iterator[list[int]]:
    order = sorted(range(len(rows)), key=lambda index: len(rows.tokens[index]))
    return (order[start : start + size] for start in range(0, len(order), size))


def main() -> None:
    """Run what the log has not, and write the table."""
    parser = arguments(__doc__, "forgetting")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=1e-3)
    given = parser.parse_args()
    jobs = {
        (name, seed): Job(contestant=name, seed=seed, steps=given.steps, rate=given.rate, device=given.device, dtype=given.dtype)
        for seed, name in itertools.product(range(given.seeds), CONTESTANTS)
    }
    rows = {Job(**row["job"]): row for row in finished(given.log)}
    waiting = [job for job in jobs.values() if job not in rows]
    print(f"{len(waiting)} of {len(jobs)} runs to go", flush=True)
    for job, row in logged(work, waiting, given.data, workers=given.workers, log=given.log):
        rows[job] = row
        print(
            f"{job.contestant:32} seed {job.seed} forgotten {row['forgotten_before']:.3f} -> {row['forgotten_after']:.3f} "
            f"remaining {row['remaining_before']:.4f} -> {row['remaining_after']:.4f} blocks {row['blocks']} of {row['of']} "
            f"parameters {row['parameters']} {row['seconds']:.0f} s",
            flush=True,
        )
    table = [summary(name, [rows[jobs[name, seed]] for seed in range(given.seeds)]) for name in CONTESTANTS]
    settings = {"steps": given.steps, "rate": given.rate, "stay": STAY, "go": GO, "bound": Forgetting(classes=(0,)).bound}
    save("forgetting", {"table": table, **settings}, measured([rows[job] for job in jobs.values()]))


def summary(name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """One contestant over its seeds."""
    lists = ("forgotten_before", "forgotten_after", "remaining_before", "remaining_after", "blocks", "parameters")
    return {
        "contestant": name,
        **{key: [row[key] for row in found] for key in lists},
        "of": found[0]["of"],
        "least_norm": min(min(row["norms"].values()) for row in found),
        "seconds": statistics.fmean(row["seconds"] for row in found),
    }


if __name__ == "__main__":
    main()
