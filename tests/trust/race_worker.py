"""Two processes export to one place at the same moment, over and over, as a process of its own.

    python tests/trust/race_worker.py FOLDER ROUNDS SEED

Prints, as JSON, how often how many of the two succeeded, with overwriting and without, and everything that was wrong.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

from paring.core.errors import ExportError, OutputExistsError
from paring.exchange.read import read
from paring.exchange.write import write
from tests.exchange.helpers import adapter

RANKS = ({"fc": 2}, {f"block.{index}": 3 for index in range(6)})
"""Two adapters that cannot be taken for each other."""


def export(which: int, place: Path, begin: float, *, overwrite: bool) -> int:
    """In a child: export at a moment. 0 is done, 1 refused in a sentence, 2 anything else."""
    try:
        trained = adapter(RANKS[which])
        time.sleep(max(0.0, begin - time.monotonic()))
        write(trained, place, overwrite=overwrite)
    except (ExportError, OutputExistsError) as error:
        print(type(error).__name__, error, file=sys.stderr)
        return 1
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is reported
        print(type(error).__name__, error, file=sys.stderr)
        return 2
    return 0


def race(folder: Path, rounds: int, chooser: random.Random, *, overwrite: bool) -> tuple[Counter[int], list[str]]:
    """How often how many of the two succeeded, and what was wrong."""
    succeeded: Counter[int] = Counter()
    wrong = []
    for number in range(rounds):
        place = folder / f"round-{number}" / "out"
        place.parent.mkdir(parents=True)
        if overwrite and number % 2:
            write(adapter(RANKS[0]), place)
        now = time.monotonic() + 0.01
        begins = [now + chooser.random() * 0.01 for _ in RANKS]
        children = []
        for which, begin in enumerate(begins):
            child = os.fork()
            if child == 0:
                os._exit(export(which, place, begin, overwrite=overwrite))
            children.append(child)
        ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        succeeded[ended.count(0)] += 1
        if not set(ended) <= {0, 1} or ended.count(0) < 1:
            wrong.append(f"round {number}: ended with {ended}")
        if read(place).ranks not in [ranks for ranks, status in zip(RANKS, ended, strict=True) if status == 0]:
            wrong.append(f"round {number}: what is there is of none that succeeded")
        if (left := [item.name for item in place.parent.iterdir()]) != ["out"]:
            wrong.append(f"round {number}: {left} is left")
    return succeeded, wrong


def main(folder: Path, rounds: int, seed: int) -> None:
    """Race with overwriting and without."""
    chooser = random.Random(seed)
    over, wrong = race(folder / "overwrite", rounds, chooser, overwrite=True)
    keep, more = race(folder / "keep", rounds, chooser, overwrite=False)
    print(json.dumps({"overwrite": over, "keep": keep, "wrong": wrong + more}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
