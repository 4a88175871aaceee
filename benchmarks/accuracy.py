"""SoRA from rank 8, with its fading penalty and with the paper's constant one, beside LoRA of rank 1, 4 and 8, each at its own best rate.

For each method the learning rate is the most accurate one on a tenth of the training rows that it was not trained on, and of equally
accurate ones that with the smallest adapter. Then it is trained on all training rows with several seeds and scored once on dev.
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any

from environment import save
from runs import TASKS, Job, Runner, arguments, measured

from paring.method import Method
from paring.methods.lora import LoRA
from paring.methods.sora import SoRA
from paring.parts.update.revive import Always

METHODS: dict[str, Method] = {
    "SoRA r 8": SoRA(rank=8, alpha=16),
    "SoRA r 8, constant penalty": SoRA(rank=8, alpha=16, penalty=0.25, fade=None, gate_rate=0.02, revive=Always()),
    "LoRA r 8": LoRA(rank=8, alpha=16),
    "LoRA r 4": LoRA(rank=4, alpha=8),
    "LoRA r 1": LoRA(rank=1, alpha=2),
}
REFERENCE = "LoRA r 8"
RATES = (3e-4, 1e-3, 3e-3, 1e-2)


def main() -> None:
    """Search, train, score, and print the table with paired differences."""
    parser = arguments(__doc__, "sora-accuracy")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["trec", "sst2"])
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help="the table is written where LoRA r 8 is one of them"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--name", default="sora-accuracy", help="of the file of results")
    given = parser.parse_args()
    run = Runner(data=given.data, log=given.log, workers=given.workers)
    pairs = list(itertools.product(given.tasks, given.methods))

    def job(task: str, name: str, rate: float, seed: int, held: bool) -> Job:
        method = METHODS[name]
        return Job(task=task, method=method, rate=rate, seed=seed, size=given.size, held=held, dtype=given.dtype, device=given.device)

    searches = iter(run([job(*pair, rate, 0, True) for pair in pairs for rate in RATES]))
    chosen: dict[tuple[str, str], float] = {}
    for pair in pairs:
        rows = dict(zip(RATES, itertools.islice(searches, len(RATES)), strict=True))
        chosen[pair] = choose(rows)
    scored = iter(run([job(*pair, chosen[pair], seed, False) for pair in pairs for seed in range(given.seeds)]))
    finals = {pair: list(itertools.islice(scored, given.seeds)) for pair in pairs}
    if REFERENCE not in given.methods:
        return
    tables = {
        task: {name: compared(finals[task, name], finals[task, REFERENCE], chosen[task, name]) for name in given.methods}
        for task in given.tasks
    }
    for task, table in tables.items():
        for name, row in table.items():
            print(
                f"{task:6} {name:27} rate {row['rate']:g}  accuracy {100 * row['mean']:.2f} +- {100 * row['sd']:.2f}  "
                f"parameters {row['parameters']:.0f} ({row['share']:.0%})  paired {row['paired_difference_points']:+.2f} points"
            )
    save(
        given.name,
        {
            "tables": tables,
            "methods": {name: METHODS[name].encode() for name in given.methods},
            "batch": given.size,
            "epochs": {task: TASKS[task].epochs for task in given.tasks},
            "rates": RATES,
            "dtype": given.dtype,
        },
        measured([row for rows in finals.values() for row in rows]),
    )


def choose(rows: dict[float, dict[str, Any]]) -> float:
    """The most accurate rate, and of equally accurate ones that with the smallest adapter."""
    return max(rows, key=lambda rate: (rows[rate]["accuracy"], -rows[rate]["parameters"]))


def compared(rows: list[dict[str, Any]], reference: list[dict[str, Any]], rate: float) -> dict[str, Any]:
    """Mean and spread over the seeds, and the differences to the reference's runs of the same seeds."""
    paired = [100 * (row["accuracy"] - other["accuracy"]) for row, other in zip(rows, reference, strict=True)]
    found = [row["accuracy"] for row in rows]
    parameters = statistics.fmean(row["parameters"] for row in rows)
    return {
        "rate": rate,
        "accuracy": found,
        "mean": statistics.fmean(found),
        "sd": statistics.stdev(found) if len(found) > 1 else 0.0,
        "loss": statistics.fmean(row["loss"] for row in rows),
        "live": statistics.fmean(row["live"] for row in rows),
        "parameters": parameters,
        "share": parameters / reference[0]["parameters"],
        "paired_difference_points": statistics.fmean(paired),
        "paired_differences_points": paired,
    }


if __name__ == "__main__":
    main()
