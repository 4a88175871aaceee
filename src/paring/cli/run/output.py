"""The folder of a run: ``adapter/`` or ``model/``, ``checkpoint-*/``, ``run.json``, ``report.html``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from paring.core.errors import AdapterError, OutputExistsError
from paring.core.reading import json_object
from paring.exchange.layout import CONFIG, SIDE

ADAPTER = "adapter"
MODEL = "model"
RUN = "run.json"
REPORT = "report.html"
FAMILY = "family"


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


@contextmanager
def no_empty(folder: Path) -> Iterator[None]:
    """Leave no empty folder behind by what fails in here, where there was none before."""
    before = folder.exists()
    try:
        yield
    except BaseException:
        if not before:
            with suppress(OSError):  # there is something in it
                folder.rmdir()
        raise


def set_aside(folder: Path) -> Path | None:
    """Move what an earlier run left in the folder, and nothing else, into a folder of its own in it.

    Returns:
        That folder; ``None`` if there was nothing.
    """
    found = [*checkpoints(folder), *(folder / name for name in (RUN, REPORT, FAMILY) if (folder / name).exists())]
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


def check_target(folder: Path, kind: Literal["export", "fusion"], *, overwrite: bool) -> None:
    """Refuse a folder to write to that holds something, in the words of the command line.

    Raises:
        OutputExistsError: names the flag that replaces it; or it was given, and what is there is of the other kind.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise OutputExistsError(f"{str(folder)!r} exists already; choose another folder, or replace an earlier {kind} with --overwrite.")
    there = "export" if (folder / CONFIG).is_file() else "fusion"
    if (folder / SIDE).is_file() and there != kind:
        raise OutputExistsError(f"{str(folder)!r} holds an earlier {there}, which no {kind} overwrites; choose another folder.")


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, the oldest first."""
    found = [item for item in folder.glob("checkpoint-*") if item.is_dir() and item.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda item: int(item.name.rpartition("-")[2]))


def check_exported(source: str) -> None:
    """Refuse a run's folder or a training checkpoint where an exported adapter is asked for, and say where one is or how to get it.

    Raises:
        AdapterError: names the folder or the command.
    """
    folder = Path(source)
    if is_checkpoint(folder):
        raise AdapterError(f"{source!r} is a training checkpoint, not an exported adapter; make one of it: paring export {folder} FOLDER.")
    if not folder.is_dir() or (folder / CONFIG).is_file():
        return
    if (folder / MODEL / "config.json").is_file():
        raise AdapterError(
            f"{source!r} is the folder of a run that trained the model's own weights, without an adapter; its model is "
            f"{str(folder / MODEL)!r}. Evaluate that, or cut a LoRA out of it: paring extract BASE {folder / MODEL} FOLDER --rank 8."
        )
    if (folder / ADAPTER / CONFIG).is_file():
        raise AdapterError(f"{source!r} is the folder of a run, not an adapter; its adapter is {str(folder / ADAPTER)!r}, give that.")
    if found := checkpoints(folder):
        raise AdapterError(f"{source!r} is the folder of a run that exported no adapter; make one: paring export {found[-1]} FOLDER.")
    family = folder / FAMILY if (folder / FAMILY).is_dir() else folder
    if stages := sorted(item.parent for item in family.glob(f"stage-*/{ADAPTER}/{CONFIG}")):
        raise AdapterError(f"{source!r} is a path with {len(stages)} adapters, and none is chosen; give one, such as {str(stages[-1])!r}.")


def check_checkpoint(folder: Path) -> None:
    """Refuse what is no training checkpoint.

    Raises:
        AdapterError: says what is there instead.
    """
    if is_checkpoint(folder):
        return
    inside, beside = ([item.name for item in checkpoints(place)] for place in (folder, folder.parent))
    if inside:
        raise AdapterError(f"{str(folder)!r} is the folder of a run, not a checkpoint; give one of those in it: {', '.join(inside)}.")
    if all((folder / name).is_file() for name in ("trainer_state.json", "config.json")):
        raise AdapterError(
            f"{str(folder)!r} is a checkpoint of a training of the model's own weights: a whole model already, which paring eval takes as "
            f"it is. A LoRA can be cut out of it: paring extract BASE {folder} FOLDER --rank 8."
        )
    if not folder.exists():
        hint = f"{str(folder.parent)!r} has {', '.join(beside)}" if beside else "give a checkpoint-* folder of a run"
        raise AdapterError(f"There is no folder {str(folder)!r}; {hint}.")
    raise AdapterError(f"{str(folder)!r} is no training checkpoint of paring; give a checkpoint-* folder of a run.")


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a training checkpoint, which stock PEFT cannot load, and not an export."""
    try:
        return bool(json_object(folder / CONFIG).get("peft_type") == "PARING")
    except AdapterError:
        return False
