"""SoRA from rank 8 beside LoRA of rank 1, 4 and 8 at their own best learning rates.

For each method the learning rate is chosen on a tenth of the training rows that it was not trained on, the smaller adapter where two are
equal; then it is trained on all training rows with several seeds and scored once on dev. Every finished run is a line of a log, so that
what was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, finished, save
from tasks import Examples, accuracy, examples, train

import paring
from paring.method import Method, decode
from paring.methods.lora import LoRA
from paring.methods.sora import SoRA

METHODS: dict[str, Method] = {
    "SoRA r 8": SoRA(rank=8, alpha=16),
    "LoRA r 8": LoRA(rank=8, alpha=16),
    "LoRA r 4": LoRA(rank=4, alpha=8),
    "LoRA r 1": LoRA(rank=1, alpha=2),
}
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
LIMITS = {"trec": None, "sst2": 8000}
EPOCHS = {"trec": 2, "sst2": 1}


def one(method: Method, data: Examples, held: Examples, *, rate: float, seed: int, size: int, epochs: int) -> dict[str, Any]:
    """Train and score one run."""
    steps = epochs * len(data) // size
    run = train(method, data, rate=rate, steps=steps, seed=seed, size=size, classes=data.classes)
    adapter = paring.snapshot(run.model)
    return {
        "accuracy": accuracy(run.model, held),
        "parameters": adapter.parameters,
        "live": run.trajectory[-1],
        "head_parameters": adapter.head_parameters,
        "seconds": round(run.seconds, 1),
        "steps": steps,
    }


def main() -> None:
    """Search, train, score, and print the table with paired differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=list(LIMITS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="run and log these only; without it, all, and the table")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--size", type=int, default=16, help="batch size")
    parser.add_argument("--log", type=Path, default=RESULTS / "sora-accuracy.jsonl")
    given = parser.parse_args()
    # Runs of other settings stay in the log and are not taken for these.
    done = {row["key"]: row for row in finished(given.log) if decode(row["settings"]) == METHODS[row["method"]]}

    def measured(key: str, task: str, name: str, rate: float, seed: int, data: Examples, held: Examples) -> dict[str, Any]:
        if key not in done:
            result = one(METHODS[name], data, held, rate=rate, seed=seed, size=given.size, epochs=EPOCHS[task])
            done[key] = {"key": key, "task": task, "method": name, "rate": rate, "seed": seed, "settings": METHODS[name].encode(), **result}
            with given.log.open("a") as file:
                file.write(json.dumps(done[key]) + "\n")
            print(key, {k: result[k] for k in ("accuracy", "parameters", "seconds")}, flush=True)
        return done[key]

    tables: dict[str, Any] = {}
    for task in given.tasks:
        data, dev = examples(given.data, task, "train", LIMITS[task]), examples(given.data, task, "dev")
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
        cut = len(order) // 10
        search, fit = data.take(order[:cut]), data.take(order[cut:])
        chosen: dict[str, float] = {}
        finals: dict[str, list[dict[str, Any]]] = {}
        for name in given.methods or METHODS:
            rows = {rate: measured(f"{task}/{name}/search/{rate:g}", task, name, rate, 0, fit, search) for rate in RATES}
            # A few hundred rows often tie; then the smaller adapter is the better one.
            chosen[name] = max(rows, key=lambda rate: (rows[rate]["accuracy"], -rows[rate]["parameters"]))
            finals[name] = [
                measured(f"{task}/{name}/final/{chosen[name]:g}/{seed}", task, name, chosen[name], seed, data, dev)
                for seed in range(given.seeds)
            ]
        if given.methods:
            continue
        reference = [row["accuracy"] for row in finals["LoRA r 8"]]
        table = {}
        for name, rows in finals.items():
            paired = [100 * (row["accuracy"] - other) for row, other in zip(rows, reference, strict=True)]
            table[name] = {
                "rate": chosen[name],
                "accuracy": [row["accuracy"] for row in rows],
                "mean": statistics.fmean(row["accuracy"] for row in rows),
                "sd": statistics.stdev([row["accuracy"] for row in rows]) if len(rows) > 1 else 0.0,
                "parameters": statistics.fmean(row["parameters"] for row in rows),
                "share": statistics.fmean(row["parameters"] for row in rows) / finals["LoRA r 8"][0]["parameters"],
                "paired_difference_points": statistics.fmean(paired),
                "paired_differences_points": paired,
            }
            row = table[name]
            print(
                f"{task:6} {name:9} rate {row['rate']:g}  accuracy {100 * row['mean']:.2f} +- {100 * row['sd']:.2f}  "
                f"parameters {row['parameters']:.0f} ({row['share']:.0%})  paired {row['paired_difference_points']:+.2f} points"
            )
        tables[task] = table
    if given.methods:
        return
    save(
        "sora-accuracy",
        {"tables": tables, "methods": {k: v.encode() for k, v in METHODS.items()}, "batch": given.size, "epochs": EPOCHS, "rates": RATES},
    )


if __name__ == "__main__":
    main()
