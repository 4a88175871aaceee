"""SoRA's defaults over tasks, main rates and step counts: the share of ranks that is left, and what that costs."""

from __future__ import annotations

from environment import save
from runs import TASKS, Job, Runner, arguments, measured

from paring.methods.sora import SoRA

RATE, STEPS = 2e-3, 300  # between the rates that accuracy.py finds best for LoRA (1e-3) and SoRA (1e-3, 3e-3)


def main() -> None:
    """Run the grid and print how many runs end between 20% and 80% of the ranks."""
    parser = arguments(__doc__, "sora-defaults")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--penalty", type=float)
    parser.add_argument("--gate_rate", type=float)
    parser.add_argument("--name", default="sora-defaults")
    given = parser.parse_args()
    changed = {key: value for key in ("penalty", "gate_rate") if (value := vars(given)[key]) is not None}
    method = SoRA(rank=8, alpha=16, **changed)
    jobs = [
        Job(task=task, method=method, rate=rate, steps=steps, seed=given.seed, size=given.size, dtype=given.dtype, device=given.device)
        for task in given.tasks
        for rate in (RATE / 3, RATE, RATE * 3)
        for steps in (STEPS // 2, STEPS, STEPS * 2)
    ]
    rows = Runner(data=given.data, log=given.log, workers=given.workers)(jobs)
    inside = sum(0.2 <= row["live"] <= 0.8 for row in rows)
    ends = sum(row["live"] in (0.0, 1.0) for row in rows)
    print(f"{inside} of {len(rows)} runs end between 20% and 80% of their ranks; {ends} at 0% or 100%.")
    runs = [
        {"task": job.task, "rate": job.rate, "dev_accuracy": row["accuracy"], **{key: row[key] for key in ("steps", "live", "trajectory")}}
        for job, row in zip(jobs, rows, strict=True)
    ]
    save(
        given.name,
        {"method": method.encode(), "runs": runs, "inside": inside, "at_the_ends": ends, "batch": given.size, "dtype": given.dtype},
        measured(rows),
    )


if __name__ == "__main__":
    main()
