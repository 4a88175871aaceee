"""A training step of our LoRA and SoRA beside PEFT's LoRA and AdaLoRA and full fine-tuning, over the frozen model's own step.

All contestants live in one process and take turns, round after round, so that a machine whose speed drifts treats them alike. What is
compared is the ratio of medians to the limit: the frozen model's forward and its backward to the embeddings, without any adapter.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import numpy as np
import torch
from contestants import CONTESTANTS, DEAD, DTYPES, FURTHER, LIMIT, SHAPES, base, batch
from environment import kept, save

PAIRS = (
    ("LoRA", "PEFT LoRA"),
    ("SoRA", "LoRA"),
    ("SoRA, 70% dead, every 8", "PEFT AdaLoRA"),
    ("SHiRA", "PEFT SHiRA"),
    ("DoRA", "PEFT DoRA"),
)
"""Whose step is also compared with whose, directly."""

OVERHEADS = (
    ("LoRA", "PEFT LoRA"),
    ("SoRA, 70% dead, always", "SoRA"),
    ("SoRA, 70% dead, every 8", "SoRA"),
    ("SoRA, 70% dead, never", "SoRA"),
    ("SoRA, 70% of modules empty, every 8", "SoRA"),
)
"""Whose overhead, the step over the limit minus 1, is compared with whose."""


WARM = 3
"""Rounds that are not counted."""


def wait(device: str) -> None:
    """Until an accelerator has done what it was given."""
    if device != "cpu":
        torch.accelerator.synchronize()


def interval(times: dict[str, np.ndarray], one: str, other: str, *, overhead: bool = False, draws: int = 2000) -> list[float]:
    """Ratio of two medians, or of two overheads, with a 95% bootstrap interval over rounds."""
    generator = np.random.default_rng(0)
    count = len(times[LIMIT])
    index = np.concatenate([np.arange(count)[None], generator.integers(0, count, (draws, count))])
    medians = {name: np.median(times[name][index], axis=1) for name in {one, other, LIMIT}}
    ratios = (medians[one] - medians[LIMIT]) / (medians[other] - medians[LIMIT]) if overhead else medians[one] / medians[other]
    low, high = np.quantile(ratios[1:], [0.025, 0.975])
    return [float(ratios[0]), float(low), float(high)]


def main() -> None:
    """Measure every cell and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=["bert", "llama"])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["fp32", "bf16"])
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS | FURTHER, default=list(CONTESTANTS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile each model, the frozen one too")
    parser.add_argument("--resume", action="store_true", help="keep the cells of a run that was cut off: same machine, versions, rounds")
    parser.add_argument("--name", default="step-time", help="of the file of results")
    given = parser.parse_args()
    names = list(dict.fromkeys([LIMIT, *given.contestants]))
    settings = {"rounds": given.rounds, "dead": DEAD, "compiled": given.compile}
    before = kept(given.name, settings) if given.resume else []
    cells = [cell for cell in before if set(names) - {LIMIT} <= set(cell["over_limit"])]
    done = {(cell["model"], cell["dtype"], cell["rank"]) for cell in cells}
    for model in given.models:
        data = batch(model, given.device)
        for dtype in given.dtypes:
            source = base(model, dtype).to(given.device)
            for rank in given.ranks:
                if (model, dtype, rank) in done:
                    continue
                built = {name: (CONTESTANTS | FURTHER)[name](copy.deepcopy(source), data, rank, dtype != "fp32") for name in names}
                if given.compile:
                    # All contestants share the code of PEFT's outermost module, and each is a compilation of its own.
                    torch._dynamo.reset()
                    torch._dynamo.config.recompile_limit = 8 * len(built)
                    for one in built.values():
                        one.model.compile()
                steps = {name: one.step for name, one in built.items()}
                times: dict[str, list[float]] = {name: [] for name in names}
                for turn in range(given.rounds + WARM):
                    for name, step in steps.items():
                        wait(given.device)
                        started = time.perf_counter()
                        step()
                        wait(given.device)
                        if turn >= WARM:
                            times[name].append(time.perf_counter() - started)
                arrays = {name: np.array(value) for name, value in times.items()}
                cell = {
                    "model": model,
                    "tokens": SHAPES[model],
                    "dtype": dtype,
                    "rank": rank,
                    "limit_seconds": float(np.median(arrays[LIMIT])),
                    "over_limit": {name: interval(arrays, name, LIMIT) for name in names if name != LIMIT},
                    "step": {f"{a} / {b}": interval(arrays, a, b) for a, b in PAIRS if {a, b} <= set(names)},
                    "overhead": {f"{a} / {b}": interval(arrays, a, b, overhead=True) for a, b in OVERHEADS if {a, b} <= set(names)},
                }
                cells.append(cell)
                print(f"{model} {dtype} r {rank}: limit {cell['limit_seconds']:.3f} s")
                for kind in ("over_limit", "step", "overhead"):
                    for key, (middle, low, high) in cell[kind].items():
                        print(f"  {kind:10} {key:60} {middle:.3f} [{low:.3f}, {high:.3f}]", flush=True)
                # What is done is kept, whatever becomes of the rest.
                save(given.name, {"cells": cells, **settings})
    slopes(cells)


def slopes(cells: list[dict[str, Any]]) -> None:
    """Print how fast each contestant's overhead grows with the rank, by least squares."""
    for model, dtype in dict.fromkeys((cell["model"], cell["dtype"]) for cell in cells):
        group = [cell for cell in cells if (cell["model"], cell["dtype"]) == (model, dtype)]
        if len(group) < 2:
            continue
        for name in group[0]["over_limit"]:
            values = [cell["over_limit"][name][0] - 1 for cell in group]
            slope = np.polyfit([cell["rank"] for cell in group], values, 1)[0]
            print(f"{model} {dtype} {name}: {100 * slope:.3f} points of the limit for each rank")


if __name__ == "__main__":
    main()
