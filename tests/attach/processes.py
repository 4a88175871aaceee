"""Two processes of one worker script, each told its rank, their number and a folder to meet in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_two(worker: Path, place: Path) -> None:
    """Start both, wait, and show the end of what each said if one of them failed."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([sys.executable, worker, str(rank), "2", str(place)], stderr=subprocess.PIPE, text=True, env=variables)
        for rank in range(2)
    ]
    ended = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(text[-1500:] for text in ended)
