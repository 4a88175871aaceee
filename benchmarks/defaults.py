"""SoRA's defaults over tasks, main rates and step counts: the share of ranks that is left, and what that costs.

Every finished run is a line of a log, so that what was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from environment import RESULTS, finished, save
from tasks import accuracy, examples, train

from paring.methods.sora import SoRA

TASKS = ("trec", "sst2", "banking77")
RATE, STEPS = 2e-3, 300  # between the rates that accuracy.py finds best for LoRA (1e-3) and SoRA (1e-3, 3e-3)


def main() -> None:
    """Run the grid and print how many runs end between 20% and 80% of the ranks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=16, help="batch size")
    parser.add_argument("--penalty", type=float)
    parser.add_argument("--gate_rate", type=float)
    parser.add_argument("--name", default="sora-defaults")
    parser.add_argument("--log", type=Path, default=RESULTS / "sora-defaults.jsonl")
    given = parser.parse_args()
    changed = {key: value for key in ("penalty", "gate_rate") if (value := vars(given)[key]) is not None}
    method = SoRA(rank=8, alpha=16, **changed)
    done = {row["key"]: row for row in finished(given.log)}
    given.log.parent.mkdir(exist_ok=True)
    rows = []
    for task in given.tasks:
        data, held = examples(given.data, task, "train", 8000), examples(given.data, task, "dev")
        for rate in (RATE / 3, RATE, RATE * 3):
            for steps in (STEPS // 2, STEPS, STEPS * 2):
                key = json.dumps([task, rate, steps, given.seed, given.size, method.encode()], sort_keys=True)
                if key in done:
                    rows.append(done[key])
                    continue
                run = train(method, data, rate=rate, steps=steps, seed=given.seed, size=given.size, classes=data.classes)
                row = {
                    "key": key,
                    "task": task,
                    "rate": rate,
                    "steps": steps,
                    "live": run.trajectory[-1],
                    "trajectory": run.trajectory,
                    "dev_accuracy": accuracy(run.model, held),
                    "seconds": round(run.seconds, 1),
                }
                rows.append(row)
                with given.log.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(
                    f"{task:6} rate {rate:.1e} steps {steps:4d}  live {row['live']:6.1%}  dev {row['dev_accuracy']:.4f}  {run.trajectory}",
                    flush=True,
                )
    inside = sum(0.2 <= row["live"] <= 0.8 for row in rows)
    ends = sum(row["live"] in (0.0, 1.0) for row in rows)
    print(f"{inside} of {len(rows)} runs end between 20% and 80% of their ranks; {ends} at 0% or 100%.")
    save(given.name, {"method": method.encode(), "runs": rows, "inside": inside, "at_the_ends": ends, "batch": given.size})


if __name__ == "__main__":
    main()
