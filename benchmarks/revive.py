"""Whether it matters how often dead gates may come back: SoRA with each rule, same task, rate and seeds.

Every finished run is a line of a log, so that what was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from accuracy import EPOCHS, LIMITS, one
from environment import RESULTS, finished, save
from tasks import examples

from paring.method import decode
from paring.methods.sora import SoRA
from paring.parts.update.revive import Always, Every, Never

RULES = {"always": Always(), "every 8": Every(period=8), "never": Never()}
METHODS = {name: SoRA(rank=8, alpha=16, revive=rule) for name, rule in RULES.items()}


def main() -> None:
    """Train, score on dev, and print what each rule gives beside the exact one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--task", choices=LIMITS, default="trec")
    parser.add_argument("--rate", type=float, default=3e-3, help="the main learning rate, as accuracy.py chose it for SoRA")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--size", type=int, default=16, help="batch size")
    parser.add_argument("--log", type=Path, default=RESULTS / "sora-revive.jsonl")
    given = parser.parse_args()
    done = {row["key"]: row for row in finished(given.log) if decode(row["settings"]) == METHODS[row["rule"]]}
    data, dev = examples(given.data, given.task, "train", LIMITS[given.task]), examples(given.data, given.task, "dev")
    table: dict[str, list[dict[str, Any]]] = {}
    for name in given.rules:
        for seed in range(given.seeds):
            key = f"{given.task}/{name}/{given.rate:g}/{seed}"
            if key not in done:
                result = one(METHODS[name], data, dev, rate=given.rate, seed=seed, size=given.size, epochs=EPOCHS[given.task])
                done[key] = {"key": key, "rule": name, "seed": seed, "settings": METHODS[name].encode(), **result}
                with given.log.open("a") as file:
                    file.write(json.dumps(done[key]) + "\n")
                print(key, {k: result[k] for k in ("accuracy", "live", "seconds")}, flush=True)
            table.setdefault(name, []).append(done[key])
    if set(given.rules) != set(RULES):
        return
    summary = {}
    for name, found in table.items():
        paired = [100 * (row["accuracy"] - other["accuracy"]) for row, other in zip(found, table["always"], strict=True)]
        summary[name] = {
            "accuracy": [row["accuracy"] for row in found],
            "mean": statistics.fmean(row["accuracy"] for row in found),
            "sd": statistics.stdev(row["accuracy"] for row in found) if len(found) > 1 else 0.0,
            "live": statistics.fmean(row["live"] for row in found),
            "paired_differences_points": paired,
            "paired_difference_points": statistics.fmean(paired),
        }
        row = summary[name]
        print(
            f"{name:8} accuracy {100 * row['mean']:.2f} +- {100 * row['sd']:.2f}  live {row['live']:.1%}  "
            f"paired {row['paired_difference_points']:+.2f}"
        )
    save("sora-revive", {"task": given.task, "rate": given.rate, "batch": given.size, "epochs": EPOCHS[given.task], "rules": summary})


if __name__ == "__main__":
    main()
