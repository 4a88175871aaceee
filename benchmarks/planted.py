"""Planted ranks: a benchmark whose answer is known.

To each linear module of an encoder an update of known rank is added, drawn from 0, 0, 1, 2, 4, with Gaussian factors and 8% of the
weight's Frobenius norm. An adapter on the encoder without them learns to give the planted encoder's hidden states. What it should find:
the updates, so an error of zero on texts that it has not seen, and their ranks.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, environment, save
from planted_contestants import CONTESTANTS, FIXED, PEERS, SHARES, UNTRAINED, After, Job
from runs import measured, resumed
from scipy.stats import ttest_1samp
from tasks import Examples, batches, encoder, examples
from torch import Tensor, nn
from transformers import AutoModel
from variants import Look

from paring.cli.study.planted import Planting, places, plant
from paring.core.adapter import Adapter
from paring.train import create_optimizer

NEAR = {"any": math.inf, "at most twice as large": 2.0, "at most a quarter larger": 1.25}
"""How much larger a peer may be: what is said of it, and how many times."""

TUNING = 1000
"""The pattern that rates are chosen on, and nothing else is scored on."""


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


@dataclass(frozen=True, kw_only=True)
class Planted:
    """What a pattern's runs share.

    Attributes:
        fit, unseen: texts to train on and to be scored on.
        wanted, goal: the planted encoder's hidden states of these.
        limit: squared distance to ``goal`` without adapter.
        ranks: that were planted, by module path.
        parameters, start: of the planted updates, and of a LoRA of rank 8.
    """

    fit: Examples
    unseen: Examples
    wanted: list[Tensor]
    goal: list[Tensor]
    limit: float
    ranks: dict[str, int]
    parameters: int
    start: int


def base(layers: int | None) -> nn.Module:
    """The encoder, or its first layers."""
    less = {} if layers is None else {"num_hidden_layers": layers}
    model: nn.Module = AutoModel.from_pretrained(encoder(), **less)
    return model


@lru_cache(maxsize=1)
def planted(folder: Path, pattern: int, norm: float, layers: int | None, device: str) -> Planted:
    """Plant; what follows for all texts is computed once for the runs of a process that follow each other."""
    fit, unseen = examples(folder, "trec", "train", length=64), examples(folder, "trec", "dev", length=64)
    teacher = base(layers).to(device).eval()
    before = states(teacher, unseen, device)
    ranks = plant(teacher, Planting(pattern=pattern, size=norm))
    costs = {name: module.in_features + module.out_features for name, module in places(teacher).items()}
    wanted, goal = states(teacher, fit, device), states(teacher, unseen, device)
    return Planted(
        fit=fit,
        unseen=unseen,
        wanted=wanted,
        goal=goal,
        limit=distance(before, goal),
        ranks=ranks,
        parameters=sum(rank * costs[name] for name, rank in ranks.items()),
        start=8 * sum(costs.values()),
    )


def work(job: Job, folder: Path) -> dict[str, Any]:
    """Train and score one run."""
    device = job.device
    of = planted(folder, job.pattern, job.norm, job.layers, device)
    fit, unseen, wanted, ranks = of.fit, of.unseen, of.wanted, of.ranks
    budget = None if job.budget is None else round(job.budget * of.parameters)
    budget = budget if job.share is None else round(job.share * of.start)

    def loss(model: nn.Module, rows: list[int]) -> Tensor:
        return squares(model, fit, wanted, rows, job)

    def order() -> Iterator[list[int]]:
        return batches(fit, job.size, torch.Generator().manual_seed(job.seed))

    look = Look(list(itertools.islice(order(), 8)), loss)
    model, after = CONTESTANTS[job.contestant](base(job.layers).to(device), job, budget, look)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    seconds = fitted(model, (loss(model, rows) for rows in order()), job, after) if after.trained else 0.0
    model.eval()

    def scored(model: nn.Module, adapter: Adapter) -> dict[str, Any]:
        left = {path: adapter.ranks.get(path, 0) for path in ranks}
        return {
            "error": distance(states(model, unseen, device), of.goal) / of.limit,
            "parameters": adapter.parameters,
            "rank_error": sum(abs(left[path] - rank) for path, rank in ranks.items()),
            "ranks": left,
        }

    adapter = after.adapter(model)
    return {
        "job": vars(job),
        **scored(model, adapter),
        "cuts": [{**place, **scored(*cut)} for place, cut in after.cuts(model, of.parameters, of.start)],
        "planted_parameters": of.parameters,
        "start_parameters": of.start,
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
                "contestant": f"{row['job']['contestant']}, cut{'' if row['job']['contestant'] in UNTRAINED else ' at the end'}",
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
                "rate": None if key[0].startswith(tuple(UNTRAINED)) else key[3],
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
    found: Tensor = ((got.float() - goal).square() * mask[..., None]).sum() / mask.sum()
    return found


def fitted(model: nn.Module, losses: Iterator[Tensor], job: Job, after: After) -> float:
    """Train; the seconds it took."""
    groups = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = create_optimizer(model, lr=job.rate) if after.ours else torch.optim.AdamW(groups, lr=job.rate, weight_decay=0.0)
    warm = max(1, round(0.06 * job.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / warm, (job.steps - step) / (job.steps - warm)))
    started = time.perf_counter()
    for step in range(job.steps):
        (next(losses) + after.extra(model)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(groups, 1.0)
        optimizer.step()
        after.step(model, step)
        optimizer.zero_grad()
        schedule.step()
    return time.perf_counter() - started


def paired(found: list[dict[str, Any]], ours: str) -> list[dict[str, Any]]:
    """The cut at each size beside the peers that are not smaller: ratios of errors, by pattern, over seeds.

    A ratio is the geometric mean over seeds and patterns; its interval of 95% is Student's t over the patterns' logarithms, since the seeds
    of one pattern are no patterns of their own.
    """
    groups: dict[tuple[str, float | None, float | None], dict[tuple[int, int], dict[str, Any]]] = {}
    for row in cut_short(found):
        job = row["job"]
        groups.setdefault((job["contestant"], job["budget"], job.get("share")), {})[job["pattern"], job["seed"]] = row
    mean = {key: statistics.fmean(row["error"] for row in rows.values()) for key, rows in groups.items()}
    size = {key: statistics.fmean(row["parameters"] for row in rows.values()) for key, rows in groups.items()}
    made = []
    for key in (key for key in groups if key[0] == ours):
        none = ("spectral", *UNTRAINED)
        peers = [other for other in groups if not other[0].startswith(none) and size[other] >= 0.98 * size[key]]
        for said, most in NEAR.items():
            near = [other for other in peers if size[other] <= most * size[key]]
            if not near:
                continue
            best = min(near, key=lambda other: mean[other])
            logs: dict[int, list[float]] = {}
            for place in groups[key].keys() & groups[best].keys():
                logs.setdefault(place[0], []).append(math.log(groups[key][place]["error"] / groups[best][place]["error"]))
            by_pattern = [statistics.fmean(values) for _, values in sorted(logs.items())]
            interval = ttest_1samp(by_pattern, 0.0).confidence_interval(0.95)
            made.append(
                {
                    "ours": ours,
                    "budget": key[1],
                    "share": key[2],
                    "among": said,
                    "peer": best[0],
                    "peer_budget": best[1],
                    "peer_share": best[2],
                    "times_as_large": size[best] / size[key],
                    "ratio": math.exp(statistics.fmean(by_pattern)),
                    "low": math.exp(interval.low),
                    "high": math.exp(interval.high),
                    "patterns": len(by_pattern),
                    "runs": sum(map(len, logs.values())),
                }
            )
    return made


def main() -> None:
    """Choose rates, run what is asked for, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(PEERS))
    parser.add_argument("--budgets", type=float, nargs="*", default=[1.0], help="shares of the planted size")
    parser.add_argument("--shares", type=float, nargs="*", default=list(SHARES), help="shares of the size of a LoRA of rank 8")
    parser.add_argument("--norm", type=float, default=Planting().size, help="of a planted update, as a share of the weight's")
    parser.add_argument("--patterns", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-3], help="of several, each contestant's best on a pattern of its own")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--size", type=int, default=32, help="texts a step")
    parser.add_argument("--layers", type=int, help="of the encoder, from the first on; by default all")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="bf16", help="bf16: autocast")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--name", default="planted", help="of the file of results")
    parser.add_argument("--log", type=Path, help="by default beside the results")
    given = parser.parse_args()
    log = given.log or RESULTS / f"{given.name}.jsonl"
    scale = {"size": given.size, "dtype": given.dtype, "norm": given.norm, "steps": given.steps, "layers": given.layers}
    place = {"device": given.device, **scale}
    sizes = [*((budget, None) for budget in given.budgets), *((None, share) for share in given.shares)]

    def run(jobs: Sequence[Job]) -> list[dict[str, Any]]:
        rows = resumed(work, jobs, given.data, workers=given.workers, log=log, decode=lambda one: Job(**one), tell=told)
        return list(rows.values())

    rates = dict.fromkeys(given.contestants, given.rates[0])
    tuned: list[dict[str, Any]] = []
    if len(given.rates) > 1:
        tried = [
            Job(contestant=name, budget=budget, share=share, pattern=TUNING, seed=0, rate=rate, **place)
            for rate, name in itertools.product(given.rates, given.contestants)
            if name not in UNTRAINED
            for budget, share in [(None, None) if name in FIXED else sizes[0]]
        ]
        tuned = [{"contestant": row["job"]["contestant"], "rate": row["job"]["rate"], "error": row["error"]} for row in run(tried)]
        rates |= {name: least(tuned, name) for name in given.contestants if name not in UNTRAINED}
    jobs = [
        Job(contestant=name, budget=budget, share=share, pattern=pattern, seed=seed, rate=rates[name], **place)
        for seed, pattern, name in itertools.product(range(given.seeds), range(given.patterns), given.contestants)
        for budget, share in ([(None, None)] if name in FIXED else sizes)
        # AdaLoRA is asked for a mean rank: none below one, and one is what the planted size comes to.
        if name != "AdaLoRA" or (not given.shares if share is None else 8 * share >= 1)
    ]
    found = run(jobs)
    pairs = [row for ours in rates if ours.startswith("spectral") for row in paired(found, ours)]
    for row in summary(found):
        rate = "untrained" if row["rate"] is None else f"rate {row['rate']:.0e}"
        print(
            f"{row['contestant']:26} {_size(row['budget'], row['share']):14} {rate}  error {row['error']:.4f} "
            f"[{row['error_low']:.4f}, {row['error_high']:.4f}]  {row['size']:.2f} of the planted size  "
            f"rank error {row['rank_error']:.0%}  {row['runs']} runs"
        )
    for row in pairs:
        peer = f"{row['peer']} {_size(row['peer_budget'], row['peer_share'])}, {row['times_as_large']:.2f} times as large"
        print(
            f"{row['ours']:18} {_size(row['budget'], row['share']):14} {row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}] of the "
            f"error of {peer} ({row['among']})"
        )
    about = {"planted": Planting().ranks, "rates": given.rates, **scale}
    save(given.name, {"rows": summary(found), "pairs": pairs, "tuned": tuned, **about}, measured(found))


def told(job: Job, row: dict[str, Any]) -> str:
    """A line for a run that has ended."""
    return (
        f"{job.contestant:26} budget {job.budget} share {job.share} pattern {job.pattern} seed {job.seed} rate {job.rate:.0e}: "
        f"error {row['error']:.5f} parameters {row['parameters']} of {row['planted_parameters']} rank error {row['rank_error']} "
        f"of {row['planted_ranks']} {row['seconds']:.0f} s"
    )


def least(tuned: list[dict[str, Any]], contestant: str) -> float:
    """The rate with the least error; one that diverged has none."""
    own = [row for row in tuned if row["contestant"] == contestant]
    return float(min(own, key=lambda row: (math.isnan(row["error"]), row["error"]))["rate"])


def _size(budget: float | None, share: float | None) -> str:
    if share is not None:
        return f"share 1/{round(1 / share)}"
    return "" if budget is None else f"budget {budget:g}"


if __name__ == "__main__":
    main()
