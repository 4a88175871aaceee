"""The files that hold the data of a place."""

from __future__ import annotations

from pathlib import Path


def data_files(path: Path) -> list[Path]:
    """A file itself, or those of a folder and of the folders in it, in order.

    Not what git or a download keeps in hidden folders, nor what ``datasets`` has computed there. What is no place here has none.
    """
    if path.is_file():
        return [path]
    return [file for file in sorted(path.rglob("*")) if file.is_file() and _is_data(file.relative_to(path))]


def _is_data(inside: Path) -> bool:
    return not any(part.startswith(".") for part in inside.parts[:-1]) and not inside.match("cache-*.arrow")
