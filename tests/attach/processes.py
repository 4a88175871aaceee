"""Several processes of one worker script, each told its rank, their number and a folder to meet in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_all(worker: Path, place: Path, size: int = 2, *words: str) -> None:
    """Start all of them, wait, and show the end of what each said if one of them failed.

    Args:
        worker: the script.
        place: the folder to meet in.
        size: how many processes.
        words: further arguments of the script.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, worker, str(rank), str(size), str(place), *words], stderr=subprocess.PIPE, text=True, env=variables
        )
        for rank in range(size)
    ]
    ended = [process.communicate(timeout=450)[1] for process in started]
    assert [process.returncode for process in started] == [0] * size, "\n".join(text[-1500:] for text in ended)
