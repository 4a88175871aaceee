"""Whether it matters how often dead gates may come back: SoRA with each rule, same task, rate and seeds.

The rules are compared under a constant penalty, where a dead gate's way back is as hard at the end as at the start; the fading one that
SoRA has by default, with the rule that goes with it, stands beside them.
"""

from __future__ import annotations

import itertools

from accuracy import compared
from environment import save
from runs import TASKS, Job, Runner, arguments, measured

from paring.methods.sora import SoRA
from paring.parts.update.revive import Always, Every, Never

METHODS = {
    "always": SoRA(rank=8, alpha=16, penalty=0.25, fade=None, gate_rate=0.02, revive=Always()),
    "every 8": SoRA(rank=8, alpha=16, penalty=0.25, fade=None, gate_rate=0.02, revive=Every(period=8)),
    "never": SoRA(rank=8, alpha=16, penalty=0.25, fade=None, gate_rate=0.02, revive=Never()),
    "never, fading penalty": SoRA(rank=8, alpha=16),
}


def main() -> None:
    """Train, score on dev, and print what each rule gives beside the exact one."""
    parser = arguments(__doc__, "sora-revive")
    parser.add_argument("--task", choices=TASKS, default="trec")
    parser.add_argument("--rate", type=float, default=3e-3, help="the main learning rate, as accuracy.py chose it for SoRA")
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    jobs = [
        Job(
            task=given.task,
            method=method,
            rate=given.rate,
            seed=seed,
            size=given.size,
            dtype=given.dtype,
            device=given.device,
        )
        for method in METHODS.values()
        for seed in range(given.seeds)
    ]
    rows = iter(Runner(data=given.data, log=given.log, workers=given.workers)(jobs))
    found = {name: list(itertools.islice(rows, given.seeds)) for name in METHODS}
    summary = {name: compared(group, found["always"], given.rate) for name, group in found.items()}
    for name, row in summary.items():
        print(
            f"{name:21} accuracy {100 * row['mean']:.2f} +- {100 * row['sd']:.2f}  live {row['live']:.1%}  "
            f"paired {row['paired_difference_points']:+.2f}"
        )
    result = {"task": given.task, "rate": given.rate, "batch": given.size, "epochs": TASKS[given.task].epochs, "dtype": given.dtype}
    save("sora-revive", {**result, "rules": summary}, measured([row for group in found.values() for row in group]))


if __name__ == "__main__":
    main()
