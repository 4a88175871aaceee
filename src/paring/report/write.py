"""Pages to disk: whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from paring.core.errors import ExportError, OutputExistsError
from paring.core.records import RunRecord
from paring.report.page import render, render_many


def write_report(record: RunRecord, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write the page of one run; see :func:`paring.report.render`.

    The file appears complete or not at all. Missing folders are made.

    Args:
        record: the run.
        path: the HTML file.
        overwrite: replace a file that is there.

    Raises:
        OutputExistsError: ``path`` is there and ``overwrite`` is false, or it is a folder.
        ExportError: it could not be written.
    """
    return write_page(Path(path), lambda: render(record), overwrite)


def write_comparison(
    records: Sequence[RunRecord], path: str | os.PathLike[str], *, title: str = "Runs side by side", overwrite: bool = False
) -> Path:
    """Write the page of several runs; see :func:`paring.report.render_many` and :func:`write_report`.

    Raises:
        DataError: there is no run to show.
        OutputExistsError: ``path`` is there and ``overwrite`` is false, or it is a folder.
        ExportError: it could not be written.
    """
    return write_page(Path(path), lambda: render_many(records, title=title), overwrite)


def write_page(path: Path, page: Callable[[], str], overwrite: bool) -> Path:
    """Write a page, whole or not at all.

    Raises:
        OutputExistsError: ``path`` is there and ``overwrite`` is false, or it is a folder.
        ExportError: it could not be written.
    """
    if path.is_dir():
        raise OutputExistsError(f"{path} is a folder: give the name of a file, {path / 'report.html'} for example.")
    if not overwrite and os.path.lexists(path):
        raise OutputExistsError(f"{path} is there already: give another path, or ask to overwrite it.")
    data = page().encode("utf-8")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ExportError(f"The report could not be written to {path}: {error.strerror or error}.") from error
    return path
