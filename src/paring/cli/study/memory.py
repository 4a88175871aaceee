"""The most memory that a run has held."""

from __future__ import annotations

import gc
from contextlib import suppress
from pathlib import Path

import torch

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def forget() -> bool:
    """Begin to measure anew, with what earlier runs have left behind collected; whether that could be had.

    Else what was held before counts too, and :func:`most` is not to be trusted.
    """
    gc.collect()  # a trainer and its model hold each other
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return True
    with suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")  # Linux: the peak of the resident set is now its size
        return True
    return False


def most() -> int | None:
    """Bytes: on the accelerator if there is one, else the peak of the process's resident set; ``None`` if unknown."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with suppress(OSError):
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return None
