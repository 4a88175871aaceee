"""Golden losses and ranks: forty steps of every method from a fixed seed. ``python -m tests.methods.golden`` writes them anew."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import paring
from paring import method as methods
from paring.train import plan
from tests.methods.small import adapted, steps

FOLDER = Path(__file__).parent / "golden"
STEPS = 40


def record(name: str) -> dict[str, Any]:
    """The loss of each step, and the ranks that are left after every fifth."""
    model = adapted(methods.load(name)().example(), seed=3)
    plan(model, steps=STEPS)
    losses, ranks = [], []
    for step, loss in steps(model, STEPS):
        losses.append(loss)
        if step % 5 == 4:
            ranks.append(sum(paring.ranks(model).values()))
    return {"losses": losses, "ranks": ranks}


def main() -> None:
    """Write those that are asked for, or all."""
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or methods._own():
        (FOLDER / f"{name}.json").write_text(json.dumps(record(name), indent=1) + "\n")


if __name__ == "__main__":
    main()
