"""What a study's runs depend on beside their settings: the data and the model, known by their content and not by where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from paring.cli.data.files import data_files
from paring.cli.data.read import check_there
from paring.cli.run.base import WEIGHTS
from paring.cli.run.options import DataOptions
from paring.cli.run.prepare import has_split
from paring.cli.study.flags import filled, unfilled
from paring.core.errors import DataError
from paring.exchange.folder import digest
from paring.exchange.layout import COMPANIONS
from paring.study.plan import Scored, Study

DATA = ("dataset_name", "eval_dataset_name", "chat_template_path")
PATHS = (*DATA, "model_name_or_path")
"""Flags whose content is known, so that where it lies is no part of a run."""
PLACES = ("dataset_name", "dataset_config", "dataset_test_split", "eval_dataset_name")
"""What tells whether a task has rows of its own to be scored on."""


def with_digests(study: Study, definitions: Mapping[str, str]) -> Study:
    """The study whose runs are known by the content of their files as well, and that knows what its final runs are scored on.

    Raises:
        DataError: data or weights are not there, and have no name of the hub either.
    """
    cells = []
    for cell in study.cells:
        given = cell.settings["flags"]
        flags = filled(given, definitions)
        found = {name: _content(str(flags[name])) for name in DATA if flags.get(name) is not None}
        base = str(flags["model_name_or_path"])
        check_there(base)
        if Path(base).is_dir():
            found["model"] = _model(Path(base))
        elif unfilled(given["model_name_or_path"]):
            found["model"] = base  # a name of the hub, which the file leaves open
        # What the command line says of anything else is a setting like those of the file.
        settings = {name: value if name in PATHS else flags[name] for name, value in given.items()}
        cells.append(replace(cell, settings={**cell.settings, "flags": settings, "digests": found}, scored=_scored(flags)))
    return replace(study, cells=tuple(cells))


def _scored(flags: Mapping[str, Any]) -> Scored:
    places = {name: flags[name] for name in PLACES if flags.get(name) is not None}
    if not _has_split(DataOptions(**places)):
        return Scored.HELD_OUT
    return Scored.WHOLE if flags.get("max_eval_samples") is None else Scored.SAMPLED


# The names of a data set's splits may have to be asked for on the hub.
_has_split = cache(has_split)


@cache
def _content(name: str) -> Any:
    """The digests of the data files at a place; the name itself for what lies on the hub."""
    path = Path(name)
    if path.is_file():
        return digest(path)
    if path.is_dir():
        found = {file.relative_to(path).as_posix(): digest(file) for file in data_files(path)}
        if not found:
            raise DataError(f"The folder {name!r} holds no data.")
        return found
    check_there(name)
    return name


@cache
def _model(folder: Path) -> dict[str, str]:
    """The digests of the weights, the tokenizer, and code that comes with them."""
    names = {*WEIGHTS, *COMPANIONS, *(file.name for ends in ("*.safetensors", "*.py") for file in folder.glob(ends))}
    return {name: digest(folder / name) for name in sorted(names) if (folder / name).is_file()}
