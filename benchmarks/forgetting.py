"""Two of 77 classes are forgotten by a trained encoder while the others stay: how many blocks does it take?

MiniLM learns banking77 (LoRA on all linear modules and the head, merged). Then an adapter on the two feed-forward modules of each of its
six blocks is trained to forget two classes, the head as it is: half of each batch stays and half is to be forgotten, with the
cross-entropy of the first and the bounded loss of the second. GS-LoRA at several penalties beside LoRA with the same losses, LoRA with the
sum of the blocks' norms in the loss as in the released code, and GS-LoRA with the prototypes of GS-LoRA++.

All start from one base; each seed has its own classes, start and order of rows. Scored on dev: the 40 rows of the two classes, and all
others.
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
from tasks import Examples, How, batches, examples, fit, moved, score, train
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

import paring
from paring.attach.find import slots
from paring.method import Method
from paring.methods.gs_lora import GSLoRA
from paring.methods.lora import LoRA
from paring.parts.update.lasso import GroupLasso
from paring.train.forget import Forgetting, class_means

TASK, CLASSES, FORGOTTEN = "banking77", 77, 2
BASE_STEPS, BASE_RATE = 800, 3e-3
BASE = Path(__file__).parents[1] / "build" / "forgetting-base"
"""What knows all classes; trained if it is not there."""
TARGETS = r".*encoder\.layer\.\d+\.(intermediate|output)\.dense"
MEANS = 20
"""Training rows of each class that its prototype is the mean of."""
PENALTIES = (10.0, 20.0, 40.0, 60.0, 80.0)
LATE, AFTER = 120.0, 50
"""A penalty that begins after so many steps, as one of the released engines does it."""
IN_LOSS = (0.1, 1.0)
BEST = 20.0
"""Of GS-LoRA, where the prototypes are tried."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run.

    Attributes:
        contestant: a key of :data:`CONTESTANTS`.
        seed: of the classes, the adapter's start and the order of the rows.
        steps, rate: of forgetting.
        size: rows of a batch, half of them to forget.
        device, dtype: where, and ``bf16`` for autocast.
    """

    contestant: str
    seed: int
    steps: int
    rate: float
    size: int
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
    f"GS-LoRA {LATE:g} after {AFTER} steps": Contestant(method=GSLoRA(rank=8, penalty=LATE, after=AFTER)),
    f"GS-LoRA {BEST:g}, prototypes": Contestant(method=GSLoRA(rank=8, penalty=BEST), prototypes=True),
}


@functools.cache
def _rows(data: Path) -> tuple[Examples, Examples]:
    return examples(data, TASK, "train"), examples(data, TASK, "dev")


def learn(data: Path, device: str, dtype: str) -> None:
    """Train what knows all classes, unless it is there already."""
    if BASE.exists():
        return
    rows, _ = _rows(data)
    run = train(LoRA(rank=8), rows, rate=BASE_RATE, steps=BASE_STEPS, seed=0, classes=CLASSES, device=device, dtype=dtype)
    scratch = BASE.with_suffix(".tmp")
    run.model.merge_and_unload().save_pretrained(scratch)
    scratch.rename(BASE)
    print(f"The base has learned in {run.seconds:.0f} s", flush=True)


def _base(device: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(BASE)
    model.to(device)  # type: ignore[arg-type]
    return model


@functools.cache
def _prototypes(data: Path, device: str, dtype: str) -> Tensor:
    """Means over the first rows of each class."""
    rows, _ = _rows(data)
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(rows.labels):
        by_class.setdefault(label, []).append(index)
    order = sorted((index for found in by_class.values() for index in found[:MEANS]), key=lambda index: len(rows.tokens[index]))
    cuts = (order[start : start + 64] for start in range(0, len(order), 64))
    with torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16"):
        return class_means(_base(device), (moved(rows.batch(cut), device) for cut in cuts), CLASSES)


def scored(model: Any, dev: Examples, classes: tuple[int, ...], how: How) -> dict[str, Any]:
    """Accuracy and cross-entropy on the rows that stay, on those to forget, and the former on each class of these."""
    found: dict[str, Any] = {}
    for name, part in zip(("remaining", "forgotten"), _parts(dev, classes), strict=True):
        found[name], found[f"{name}_loss"] = score(model, dev.take(part), **how)
    found["each"] = [score(model, dev.take(_parts(dev, (one,))[1]), **how)[0] for one in classes]
    return found


@functools.cache
def _before(data: Path, classes: tuple[int, ...], device: str, dtype: str) -> dict[str, Any]:
    return scored(_base(device), _rows(data)[1], classes, How(device=device, dtype=dtype))


def work(job: Job, data: Path) -> dict[str, Any]:
    """Forget, and score before and after."""
    contestant, how = CONTESTANTS[job.contestant], How(device=job.device, dtype=job.dtype)
    rows, dev = _rows(data)
    generator = torch.Generator().manual_seed(job.seed)
    classes = tuple(sorted(torch.randperm(CLASSES, generator=generator)[:FORGOTTEN].tolist()))
    loss = Forgetting(classes=classes, prototypes=_prototypes(data, **how) if contestant.prototypes else None)
    model = paring.adapt(_base(job.device), contestant.method, target_modules=TARGETS, seed=job.seed)
    blocks = GroupLasso(weight=1.0).groups(slots(model))
    factors = {name: [slots(model)[path].get_parameter(factor) for path, factor in members] for name, members in blocks.items()}

    def loss_of(outputs: Any, labels: Tensor) -> Tensor:
        total = loss(outputs, labels)
        if contestant.in_loss:
            total = total + contestant.in_loss * torch.stack([_norm(group) for group in factors.values()]).sum()
        return total

    # The encoder's own dropout draws from torch's global generator.
    torch.manual_seed(job.seed)
    seconds = fit(
        model,
        rows,
        rate=job.rate,
        steps=job.steps,
        seed=job.seed,
        loss_of=loss_of,
        order=_mixed(rows, classes, job.size // 2, generator),
        **how,
    )
    adapter = paring.snapshot(model)
    return {
        "job": vars(job),
        "classes": classes,
        "before": _before(data, classes, **how),
        "after": scored(model, dev, classes, how),
        "blocks": sum(any(adapter.ranks[path] for path, _ in members) for members in blocks.values()),
        "of": len(blocks),
        "norms": {name: float(_norm(group).detach()) for name, group in factors.items()},
        "parameters": adapter.parameters,
        "seconds": round(seconds, 1),
        "environment": environment(),
    }


def _norm(group: list[torch.nn.Parameter]) -> Tensor:
    found: Tensor = torch.stack([parameter.norm() for parameter in group]).norm()
    return found


def _parts(rows: Examples, classes: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """The rows that stay, and those to forget."""
    go = [index for index, label in enumerate(rows.labels) if label in classes]
    return [index for index, label in enumerate(rows.labels) if label not in classes], go


def _mixed(rows: Examples, classes: tuple[int, ...], size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Batches with rows of both kinds."""
    stay, go = _parts(rows, classes)
    kept, gone = batches(rows.take(stay), size, generator), batches(rows.take(go), size, generator)
    for some, others in zip(kept, gone, strict=True):
        yield [stay[index] for index in some] + [go[index] for index in others]


def main() -> None:
    """Run what the log has not, and write the table."""
    parser = arguments(__doc__, "forgetting")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rate", type=float, default=1e-3)
    given = parser.parse_args()
    how = {"device": given.device, "dtype": given.dtype}
    learn(given.data, **how)
    jobs = {
        (name, seed): Job(contestant=name, seed=seed, steps=given.steps, rate=given.rate, size=given.size, **how)
        for seed, name in itertools.product(range(given.seeds), CONTESTANTS)
    }
    rows = {Job(**row["job"]): row for row in finished(given.log)}
    waiting = [job for job in jobs.values() if job not in rows]
    print(f"{len(waiting)} of {len(jobs)} runs to go", flush=True)
    for job, row in logged(work, waiting, given.data, workers=given.workers, log=given.log):
        rows[job] = row
        print(
            f"{job.contestant:32} seed {job.seed} forgotten {row['before']['forgotten']:.3f} -> {row['after']['forgotten']:.3f} "
            f"remaining {row['before']['remaining']:.4f} -> {row['after']['remaining']:.4f} blocks {row['blocks']} of {row['of']} "
            f"parameters {row['parameters']} {row['seconds']:.0f} s",
            flush=True,
        )
    table = [summary(name, [rows[jobs[name, seed]] for seed in range(given.seeds)]) for name in CONTESTANTS]
    settings = {
        "steps": given.steps,
        "rate": given.rate,
        "size": given.size,
        "base_steps": BASE_STEPS,
        "bound": Forgetting(classes=(0,)).bound,
    }
    save("forgetting", {"table": table, **settings}, measured([rows[job] for job in jobs.values()]))


def summary(name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """One contestant over its seeds."""
    return {
        "contestant": name,
        **{f"{part}_{when}": [row[when][part] for row in found] for part in ("forgotten", "remaining") for when in ("before", "after")},
        "each": [row["after"]["each"] for row in found],
        "forgotten_loss": statistics.fmean(row["after"]["forgotten_loss"] for row in found),
        "blocks": [row["blocks"] for row in found],
        "of": found[0]["of"],
        "parameters": [row["parameters"] for row in found],
        "least_norm": min(min(row["norms"].values()) for row in found),
        "seconds": statistics.fmean(row["seconds"] for row in found),
    }


if __name__ == "__main__":
    main()
