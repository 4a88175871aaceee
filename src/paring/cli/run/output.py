"""The folder of a run: ``adapter/``, ``checkpoint-*/``, ``run.json``, ``report.html``."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from paring.core.errors import OutputExistsError

ADAPTER = "adapter"
RUN = "run.json"
REPORT = "report.html"


def check_output(folder: Path, *, overwrite: bool, resumes: bool) -> None:
    """Refuse a folder that holds something already, before any work is done.

    Raises:
        OutputExistsError: there is something in it, and neither overwriting nor resuming was asked for.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"--output_dir {str(folder)!r} is a file; give a folder.")
    if overwrite or resumes or not folder.is_dir() or not any(folder.iterdir()):
        return
    more = " go on with it by --resume_from_checkpoint last," if any(folder.glob("checkpoint-*")) else ""
    raise OutputExistsError(
        f"--output_dir {str(folder)!r} is not empty: choose another folder,{more} or replace an earlier run's files in it with --overwrite."
    )


def set_aside(folder: Path) -> Path | None:
    """Move what an earlier run left in the folder, and nothing else, into a folder of its own in it.

    Returns:
        That folder; ``None`` if there was nothing.
    """
    found = [item for item in folder.glob("checkpoint-*") if item.is_dir() and item.name.rpartition("-")[2].isdigit()]
    found += [folder / name for name in (RUN, REPORT) if (folder / name).exists()]
    if not found:
        return None
    number = 1
    while (folder / f"replaced-{number}").exists():
        number += 1
    aside = folder / f"replaced-{number}"
    aside.mkdir()
    for item in found:
        item.rename(aside / item.name)
    return aside


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp makes it private
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a training checkpoint, which stock PEFT cannot load, and not an export."""
    try:
        return bool(json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("peft_type") == "PARING")
    except (OSError, ValueError, AttributeError):
        return False
