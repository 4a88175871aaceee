"""Which of a trainer's checkpoints can be gone on from."""

from __future__ import annotations

import json
from pathlib import Path

STATE = "trainer_state.json"
"""What a trainer writes last into a checkpoint."""

UNFINISHED = ".unfinished"
"""In a run's folder: where a checkpoint is written until it is complete (:mod:`paring.train.saving`)."""


def numbered(output_dir: Path) -> list[Path]:
    """All checkpoints in a folder, also half ones, by their step."""
    found = [folder for folder in output_dir.glob("checkpoint-*") if folder.name.rpartition("-")[2].isdigit() and folder.is_dir()]
    return sorted(found, key=lambda folder: int(folder.name.rpartition("-")[2]))


def last_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint in a folder that can be resumed from on one device."""
    return next((folder for folder in reversed(numbered(output_dir)) if complete(folder)), None)


def last_written(output_dir: Path) -> Path | None:
    """The newest checkpoint in a folder that was written to its end, whatever files its trainer writes."""
    return next((folder for folder in reversed(numbered(output_dir)) if written(folder)), None)


def written(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: the trainer writes its state last, and a whole JSON file proves the rest."""
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return True


def complete(checkpoint: Path) -> bool:
    """Whether a checkpoint can be resumed from: it was written to its end, and nothing of it has been deleted since."""
    weights = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")
    return (
        written(checkpoint)
        and any((checkpoint / name).is_file() for name in weights)
        and all((checkpoint / name).is_file() for name in ("optimizer.pt", "scheduler.pt"))
        and any(checkpoint.glob("rng_state*.pth"))
    )
