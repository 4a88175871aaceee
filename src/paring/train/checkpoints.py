"""Which of a trainer's checkpoints can be gone on from."""

from __future__ import annotations

import json
from pathlib import Path


def last_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint in a folder that was written to its end; a full disk or a kill may have left a half one."""
    found = [folder for folder in output_dir.glob("checkpoint-*") if folder.name.rpartition("-")[2].isdigit() and complete(folder)]
    return max(found, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def complete(checkpoint: Path) -> bool:
    """Whether a checkpoint can be resumed from: the trainer writes its state last, and a whole JSON file proves the rest."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    weights = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")
    return any((checkpoint / name).is_file() for name in weights) and (checkpoint / "optimizer.pt").is_file()
