"""Fuzzes readers in a process of its own, with little memory, under a clock and an audit hook; prints a line of JSON for each topic.

    python -m tests.trust.hostile_worker SEED TOPIC=COUNT ...

A case is made from its topic, its number and the seed alone: ``one(topic, number, seed, place)`` repeats it.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

LIMIT = 6 * 2**30
"""Bytes of address space, most of which the libraries take; what a reader asks for beyond is a MemoryError."""

WALL = 60.0
"""Seconds after which a case hangs, whatever else the machine does."""


class Hangs(BaseException):
    """A case that does not come to an end; no reader may catch it."""


def _hangs(number: int, frame: FrameType | None) -> None:
    raise Hangs


def one(topic: str, number: int, seed: int, place: Path) -> None:
    """Run one case."""
    from tests.trust.hostile_topics import TOPICS

    TOPICS[topic](random.Random(f"{topic}/{number}/{seed}"), place)


def fuzz(topic: str, count: int, seed: int, place: Path, watch: Any) -> dict[str, Any]:
    """Run so many cases, and count."""
    from paring.core.errors import ParingError

    for number in range(-30, 0):  # what is loaded or made the first time only
        with suppress(Exception):  # seen below, if it happens again
            one(topic, number, seed, place)
    came: Counter[str] = Counter()
    faults: list[str] = []
    slowest = (0.0, -1)
    before, began, clock = _peak(), len(watch.seen), time.process_time()
    for number in range(count):
        signal.setitimer(signal.ITIMER_REAL, WALL)
        start = time.process_time()
        watch.on = True
        try:
            one(topic, number, seed, place)
            came["taken"] += 1
        except ParingError as error:
            came[type(error).__name__] += 1
            said = str(error)
            if "\n" in said or not 15 <= len(said) <= 2100:
                faults.append(f"case {number}: no sentence: {said[:300]!r}")
        except (Exception, Hangs) as error:  # noqa: BLE001 - whatever it is, it is counted
            came["bare"] += 1
            at = traceback.extract_tb(error.__traceback__)[-1]
            faults.append(f"case {number}: {type(error).__name__}: {str(error)[:200]!r} at {at.filename}:{at.lineno}")
        finally:
            watch.on = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        slowest = max(slowest, (time.process_time() - start, number))
    return {
        "cases": count,
        "came": dict(came),
        "faults": faults[:8],
        "bad": len(faults),
        "slowest": slowest,
        "seconds": time.process_time() - clock,
        "grown": _peak() - before,
        "outside": watch.seen[began : began + 8],
    }


def _peak() -> int:
    """The most memory that the process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Run what the command line asks for."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    import tests.trust.hostile_topics  # noqa: F401 - before the memory is limited and the watch begins
    from tests.trust.hostile_watch import Watch

    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    signal.signal(signal.SIGALRM, _hangs)
    seed, *asked = sys.argv[1:]
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        watch = Watch(Path(name))
        for item in asked:
            topic, _, count = item.partition("=")
            place = Path(name) / topic
            place.mkdir()
            print(json.dumps({"topic": topic, **fuzz(topic, int(count), int(seed), place, watch)}), flush=True)


if __name__ == "__main__":
    main()
