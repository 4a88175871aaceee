"""Several processes of one worker script, each told its rank, their number and a folder to meet in."""

from __future__ import annotations

import os
from pathlib import Path

from tests.warm import Warm

ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """Of a process that runs a worker script: one thread, and `tests` is this repository's, whatever else has that name."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


def run_all(warm: Warm, worker: Path, place: Path, size: int = 2, *words: str) -> None:
    """Start all of them, wait, and show the end of what each said if one of them failed.

    Args:
        warm: what starts them.
        worker: the script.
        place: the folder to meet in.
        size: how many processes.
        words: further arguments of the script.
    """
    variables = environment()
    started = [warm.start([worker, str(rank), str(size), place, *words], env=variables) for rank in range(size)]
    ended = [warm.wait(process, timeout=450) for process in started]
    assert [process.returncode for process in ended] == [0] * size, "\n".join(process.stderr[-1500:] for process in ended)
