"""Planted ranks: a benchmark whose answer is known.

To each linear module of an encoder an update of known rank is added, drawn from 0, 0, 1, 2, 4, with Gaussian factors and 8% of the
weight's Frobenius norm. An adapter on the encoder without them learns to give the planted encoder's hidden states. What it should find:
the updates, so an error of zero on texts that it has not seen, and their ranks.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, environment, finished, save
from peft import AdaLoraConfig, get_peft_model
from runs import logged, measured
from tasks import Examples, batches, encoder, examples
from torch import Tensor, nn
from transformers import AutoModel
from variants import VARIANTS, Variant, varied

import paring
from paring.cli.study.planted import Planting, places, plant
from paring.core.adapter import Adapter
from paring.lead.cutter import Cutter
from paring.methods.lora import LoRA
from paring.methods.sora import SoRA
from paring.methods.spectral import Spectral
from paring.parts.allocate.budget import Parameters, Share
from paring.train import create_optimizer, plan

SHARES = (0.5, 0.25, 0.125, 0.0625)
"""Sizes beside the planted one, as shares of a LoRA of rank 8."""

TARGETS = r".*encoder\.layer\..*\.(query|key|value|dense)"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run.

    Attributes:
        contestant: a name of :data:`CONTESTANTS`.
        budget: parameters, as a share of the planted ones; ``None`` for those that have none.
        share: the same, as a share of those that a LoRA of rank 8 has.
        norm: Frobenius norm of a planted update, as a share of the weight's.
        pattern: seed of the planted updates.
        seed: of the adapter's start and the order of the texts.
        rate, steps, size: main learning rate, optimizer steps, texts a step.
        device, dtype: where, and ``bf16`` for autocast.
    """

    contestant: str
    budget: float | None
    share: float | None = None
    norm: float = Planting().size
    pattern: int
    seed: int
    rate: float = 3e-3
    steps: int = 600
    size: int
    device: str
    dtype: str


@torch.inference_mode()
def states(model: nn.Module, data: Examples, device: str) -> list[Tensor]:
    """The hidden states of each text, float32."""
    found: list[Tensor] = [torch.empty(0)] * len(data)
    order = sorted(range(len(data)), key=lambda i: len(data.tokens[i]))
    for start in range(0, len(order), 128):
        rows = order[start : start + 128]
        given = data.batch(rows)
        out = model(input_ids=given["input_ids"].to(device), attention_mask=given["attention_mask"].to(device)).last_hidden_state
        for i, state in zip(rows, out, strict=True):
            found[i] = state[: len(data.tokens[i])].clone()
    return found


def distance(got: list[Tensor], wanted: list[Tensor]) -> float:
    """Squared distance, summed over texts and tokens."""
    return float(sum((a - b).double().square().sum() for a, b in zip(got, wanted, strict=True)))


def work(job: Job, folder: Path) -> dict[str, Any]:
    """Train and score one run."""
    fit, unseen = examples(folder, "trec", "train", length=64), examples(folder, "trec", "dev", length=64)
    device = job.device
    teacher = AutoModel.from_pretrained(encoder()).to(device).eval()
    before = states(teacher, unseen, device)
    ranks = plant(teacher, Planting(pattern=job.pattern, size=job.norm))
    costs = {name: module.in_features + module.out_features for name, module in places(teacher).items()}
    planted, start = sum(rank * costs[name] for name, rank in ranks.items()), 8 * sum(costs.values())
    wanted, goal = states(teacher, fit, device), states(teacher, unseen, device)
    del teacher
    budget = None if job.budget is None else round(job.budget * planted)
    budget = budget if job.share is None else round(job.share * start)

    def losses(model: nn.Module, rows: Iterator[list[int]]) -> Iterator[Tensor]:
        return (squares(model, fit, wanted, next(rows), job) for _ in itertools.count())

    def few(model: nn.Module) -> Iterator[Tensor]:
        return itertools.islice(losses(model, batches(fit, job.size, torch.Generator().manual_seed(job.seed))), 8)

    model, after = CONTESTANTS[job.contestant](AutoModel.from_pretrained(encoder()).to(device), job, budget, few)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    seconds = fitted(model, losses(model, batches(fit, job.size, torch.Generator().manual_seed(job.seed))), job, after)
    model.eval()
    limit = distance(before, goal)

    def scored(model: nn.Module, adapter: Adapter) -> dict[str, Any]:
        left = {path: adapter.ranks.get(path, 0) for path in ranks}
        return {
            "error": distance(states(model, unseen, device), goal) / limit,
            "parameters": adapter.parameters,
            "rank_error": sum(abs(left[path] - rank) for path, rank in ranks.items()),
            "ranks": left,
        }

    adapter = after.adapter(model)
    return {
        "job": vars(job),
        **scored(model, adapter),
        "cuts": [{**place, **scored(*cut)} for place, cut in after.cuts(model, planted, start)],
        "planted_parameters": planted,
        "start_parameters": start,
        "planted_ranks": sum(ranks.values()),
        "planted": ranks,
        "seconds": seconds,
        "environment": environment(),
    }


def cut_short(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, and one for each cut that was made of a trained adapter at its end."""
    made = []
    for row in found:
        made.append(row)
        for cut in row.get("cuts", []):
            job = {
                **row["job"],
                "contestant": f"{row['job']['contestant']}, cut at the end",
                "budget": cut["budget"],
                "share": cut["share"],
            }
            made.append({**row, **cut, "job": job})
    return made


def summary(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each contestant, budget and rate, over patterns and seeds."""
    groups: dict[tuple[str, float | None, float | None, float], list[dict[str, Any]]] = {}
    for row in cut_short(found):
        job = row["job"]
        groups.setdefault((job["contestant"], job["budget"], job.get("share"), job["rate"]), []).append(row)
    order = sorted(groups, key=lambda key: (-(key[1] or 9.0), -(key[2] or 9.0), key[0], key[3]))
    rows = []
    for key in order:
        group = groups[key]
        errors = [row["error"] for row in group]
        rows.append(
            {
                "contestant": key[0],
                "budget": key[1],
                "share": key[2],
                "rate": key[3],
                "runs": len(group),
                "patterns": len({row["job"]["pattern"] for row in group}),
                "error": statistics.mean(errors),
                "error_low": min(errors),
                "error_high": max(errors),
                "size": statistics.mean(row["parameters"] / row["planted_parameters"] for row in group),
                "rank_error": statistics.mean(row["rank_error"] / row["planted_ranks"] for row in group),
                "seconds": statistics.mean(row["seconds"] for row in group),
            }
        )
    return rows


def squares(model: nn.Module, fit: Examples, wanted: list[Tensor], rows: list[int], job: Job) -> Tensor:
    """The mean squared distance of the hidden states of these rows from what is wanted."""
    given = fit.batch(rows)
    mask = given["attention_mask"].to(job.device)
    with torch.autocast(job.device, torch.bfloat16, enabled=job.dtype == "bf16"):
        got = model(input_ids=given["input_ids"].to(job.device), attention_mask=mask).last_hidden_state
    goal = torch.zeros_like(got, dtype=torch.float32)
    for row, i in enumerate(rows):
        goal[row, : len(wanted[i])] = wanted[i]
    return ((got.float() - goal).square() * mask[..., None]).sum() / mask.sum()


def fitted(model: nn.Module, losses: Iterator[Tensor], job: Job, after: After) -> float:
    """Train; the seconds it took."""
    groups = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = create_optimizer(model, lr=job.rate) if after.ours else torch.optim.AdamW(groups, lr=job.rate, weight_decay=0.0)
    warm = max(1, round(0.06 * job.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / warm, (job.steps - step) / (job.steps - warm)))
    started = time.perf_counter()
    for step in range(job.steps):
        (next(losses) + after.extra(model)).backward()
        torch.nn.utils.clip_grad_norm_(groups, 1.0)
        optimizer.step()
        after.step(model, step)
        optimizer.zero_grad()
        schedule.step()
    return time.perf_counter() - started


class After:
    """What belongs to a contestant beside its model."""

    ours = True

    def step(self, model: Any, step: int) -> None:
        """Called after each optimizer step."""

    def extra(self, model: Any) -> Tensor | float:
        """Added to the loss."""
        return 0.0

    def adapter(self, model: Any) -> Adapter:
        """What is left at the end."""
        return paring.snapshot(model)

    def cuts(self, model: Any, planted: int, start: int) -> Iterable[tuple[dict[str, float | None], tuple[nn.Module, Adapter]]]:
        """What else is made of it at the end, and where that stands."""
        return ()


class Cut(After):
    """Cut at the end, to the planted size and to shares of a LoRA of rank 8."""

    def cuts(self, model: Any, planted: int, start: int) -> Iterator[tuple[dict[str, float | None], tuple[nn.Module, Adapter]]]:
        """Each of the whole adapter."""
        for budget, share in ((1.0, None), *((None, share) for share in SHARES)):
            one = copy.deepcopy(model)
            cutter = plan(one, steps=1)["default"]
            assert isinstance(cutter, Cutter)
            cutter.cut(planted if share is None else round(share * start))
            yield {"budget": budget, "share": share}, (one, paring.snapshot(one))


class Ada(After):
    """PEFT's AdaLoRA, with the calls that it needs, at LoRA's scale."""

    ours = False

    def step(self, model: Any, step: int) -> None:
        """Update scores and masks."""
        model.base_model.update_and_allocate(step + 1)

    def extra(self, model: Any) -> Tensor:
        """Its orthogonality term, which PEFT adds to a loss of the model's own."""
        terms = [
            torch.norm(
                p @ p.T - torch.eye(p.shape[0], device=p.device) if "lora_A" in name else p.T @ p - torch.eye(p.shape[1], device=p.device)
            )
            for name, p in model.named_parameters()
            if "lora_A" in name or "lora_B" in name
        ]
        result: Tensor = 0.5 * torch.stack(terms).mean()
        return result

    def adapter(self, model: Any) -> Adapter:
        """The triplets whose singular value is not zero."""
        modules = {}
        for name, module in model.named_modules():
            if hasattr(module, "lora_E"):
                path = name.removeprefix("base_model.model.")
                modules[path] = paring.core.factors.Factors(
                    a=module.lora_A["default"].detach().cpu(),
                    b=module.lora_B["default"].detach().cpu(),
                    gate=module.lora_E["default"].detach().flatten().cpu(),
                )
        return Adapter(modules=modules)


Built = tuple[Any, After]


Losses = Callable[[nn.Module], Iterable[Tensor]]
"""Those of a model on a few batches."""

Contestant = Callable[[nn.Module, Job, int | None, Losses], Built]


def ours(make: Callable[[int | None], Any]) -> Contestant:
    """A contestant of paring's own."""

    def build(model: nn.Module, job: Job, budget: int | None, losses: Losses) -> Built:
        adapted = paring.adapt(model, make(budget), target_modules=TARGETS, seed=job.seed)
        plan(adapted, steps=job.steps)
        return adapted, After()

    return build


def whole(model: nn.Module, job: Job, budget: int | None, losses: Losses) -> Built:
    """LoRA of rank 8, which the spectral cut is until it cuts: not before the training is over."""
    adapted = paring.adapt(model, Spectral(budget=Share(share=1.0)), target_modules=TARGETS, seed=job.seed)
    plan(adapted, steps=job.steps)
    return adapted, Cut()


def adalora(model: nn.Module, job: Job, budget: int | None, losses: Losses) -> Built:
    """AdaLoRA from rank 8 to the mean rank that the budget pays for."""
    assert budget is not None
    mean = sum(m.in_features + m.out_features for m in places(model).values())
    torch.manual_seed(job.seed)
    config = AdaLoraConfig(
        init_r=8,
        target_r=max(1, round(budget / mean)),
        lora_alpha=16,
        total_step=job.steps,
        tinit=job.steps // 10,
        tfinal=job.steps * 4 // 10,
        deltaT=10,
        target_modules=TARGETS,
    )
    return get_peft_model(model, config), Ada()


def cut(variant: Variant) -> Contestant:
    """The spectral cut, as it is or as it was tried."""

    def build(model: nn.Module, job: Job, budget: int | None, losses: Losses) -> Built:
        size = Parameters(count=budget or 1)
        return varied(model, variant, size, steps=job.steps, seed=job.seed, losses=losses, target_modules=TARGETS), After()

    return build


CONTESTANTS: dict[str, Contestant] = {
    "LoRA r 1": ours(lambda _: LoRA(rank=1, alpha=2)),
    "LoRA r 2": ours(lambda _: LoRA(rank=2, alpha=4)),
    "LoRA r 8": whole,
    "SoRA": ours(lambda _: SoRA(rank=8, alpha=16)),
    "AdaLoRA": adalora,
    "spectral": cut(Variant()),
    "spectral, knee": ours(lambda _: Spectral()),
    "spectral, r 16, knee": ours(lambda _: Spectral(rank=16)),
    **{f"spectral, {name}": cut(variant) for name, variant in VARIANTS.items()},
}

PEERS = ("LoRA r 1", "LoRA r 2", "LoRA r 8", "SoRA", "AdaLoRA", "spectral", "spectral, by loss")


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(PEERS))
    parser.add_argument("--budgets", type=float, nargs="*", default=[1.0], help="shares of the planted size")
    parser.add_argument("--shares", type=float, nargs="*", default=list(SHARES), help="shares of the size of a LoRA of rank 8")
    parser.add_argument("--norm", type=float, default=Planting().size, help="of a planted update, as a share of the weight's")
    parser.add_argument("--patterns", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-3])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--size", type=int, default=32, help="texts a step")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="bf16", help="bf16: autocast")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--name", default="planted", help="of the file of results")
    parser.add_argument("--log", type=Path, help="by default beside the results")
    given = parser.parse_args()
    log = given.log or RESULTS / f"{given.name}.jsonl"
    fixed = {"LoRA r 1", "LoRA r 2", "LoRA r 8", "SoRA", *(name for name in CONTESTANTS if name.endswith("knee"))}
    place = {"size": given.size, "device": given.device, "dtype": given.dtype, "norm": given.norm, "steps": given.steps}
    sizes = [*((budget, None) for budget in given.budgets), *((None, share) for share in given.shares)]
    jobs = [
        Job(contestant=name, budget=budget, share=share, pattern=pattern, seed=seed, rate=rate, **place)
        for seed, pattern, rate, name in itertools.product(range(given.seeds), range(given.patterns), given.rates, given.contestants)
        for budget, share in ([(None, None)] if name in fixed else sizes)
        # AdaLoRA is asked for a mean rank, and has none below one.
        if name != "AdaLoRA" or share is None or 8 * share >= 1
    ]
    done = {json.dumps(row["job"], sort_keys=True) for row in finished(log)}
    waiting = [job for job in jobs if json.dumps(vars(job), sort_keys=True) not in done]
    for job, row in logged(work, waiting, given.data, workers=given.workers, log=log):
        print(
            f"{job.contestant:26} budget {job.budget} share {job.share} pattern {job.pattern} seed {job.seed} rate {job.rate:.0e}: "
            f"error {row['error']:.5f} parameters {row['parameters']} of {row['planted_parameters']} rank error {row['rank_error']} "
            f"of {row['planted_ranks']} {row['seconds']:.0f} s",
            flush=True,
        )
    found = finished(log)
    for row in summary(found):
        budget = "" if row["budget"] is None else f"budget {row['budget']:g}"
        budget = budget if row["share"] is None else f"share {row['share']:g}"
        print(
            f"{row['contestant']:26} {budget:12} rate {row['rate']:.0e}  error {row['error']:.4f} "
            f"[{row['error_low']:.4f}, {row['error_high']:.4f}]  {row['size']:.2f} of the planted size  "
            f"rank error {row['rank_error']:.0%}  {row['runs']} runs"
        )
    save(
        given.name,
        {
            "rows": summary(found),
            "planted": Planting().ranks,
            "norm": given.norm,
            "steps": given.steps,
            "size": given.size,
            "dtype": given.dtype,
        },
        measured(found),
    )


if __name__ == "__main__":
    main()
