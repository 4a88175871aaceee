"""What a data file or folder must not be, looked at before ``datasets`` opens it: it would crash on it, or follow it elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from paring.cli.plain import PlainLoader
from paring.core.errors import DataError
from paring.core.reading import json_object

DEEPEST = 64
"""Levels of a JSON value."""

_PACKED = {b"BZh": "bzip2", b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard", b"Rar!": "rar"}
# A string, whole or torn off at the line's end; a bracket; or what else there is of a value.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{]|[\]}]|[^\s\[\]{}",:]+')


def check_packed(path: Path) -> None:
    """Refuse an archive by another name: ``datasets`` unpacks whatever begins like one, however large it becomes.

    Raises:
        DataError: says what it is.
    """
    with path.open("rb") as file:
        start = file.read(8)
    for magic, name in _PACKED.items():
        if start.startswith(magic):
            raise DataError(f"{str(path)!r} is packed ({name}), whatever its name says; unpack it first.")


def check_json(path: Path) -> None:
    """Refuse JSON that is nested deeper than any row, or has a row that is neither an object nor inside a list: its parser would crash.

    Raises:
        DataError: names the line.
    """
    depth = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            text = line.strip()
            opened = text.count(b"{") + text.count(b"[")
            if depth == 0 and opened <= DEEPEST and text.startswith(b"{") and text.endswith(b"}"):
                continue  # a row by itself, as nearly all lines are
            for token in _TOKEN.finditer(text):
                first = token[0][:1]
                if first in b"[{":
                    depth += 1
                    if depth > DEEPEST:
                        raise DataError(f"{str(path)!r}, line {number}: a value is nested more than {DEEPEST} levels deep; flatten it.")
                elif first in b"]}":
                    depth -= 1
                elif depth <= 0:
                    shown = text[:40].decode("utf-8", "replace")
                    raise DataError(
                        f"{str(path)!r} could not be read as {path.suffix[1:]}: line {number} is no object but {shown!r}. Write each row "
                        'as an object, such as {"text": "..."}.'
                    )


def check_inside(folder: Path) -> None:
    """Refuse a folder whose own files name data outside of it, or on the network.

    A folder that ``datasets`` has saved lists its parts, and one from the hub may say in its card which files are whose.

    Raises:
        DataError: names the file and what it names.
    """
    for name, key in (("dataset_dict.json", "splits"), ("state.json", "_data_files")):
        for path in [folder / name, *folder.glob(f"*/{name}")]:
            if path.is_file():
                data = json_object(path, DataError)
                _check_names(path, _strings(data.get(key)))
    for name in ("README.md", ".huggingface.yaml"):
        path = folder / name
        if path.is_file():
            for said in _configs(path):
                _check_names(path, said)


def _configs(path: Path) -> Iterator[Iterator[str]]:
    text = path.read_bytes()[: 2**20].decode("utf-8", "replace")
    if path.suffix == ".md":
        lines = text.splitlines()
        if not lines or lines[0].strip() != "---":
            return
        end = next((number for number, line in enumerate(lines[1:], start=1) if line.strip() == "---"), None)
        text = "\n".join(lines[1:end])
    try:
        said = PlainLoader(text).get_single_data()
    except yaml.YAMLError as error:
        raise DataError(f"{str(path)!r} does not begin with valid YAML ({' '.join(str(error).split())}); mend it, or remove it.") from error
    for config in said.get("configs") or () if isinstance(said, Mapping) else ():
        if isinstance(config, Mapping):
            yield _strings([config.get("data_files"), config.get("data_dir")])


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _check_names(path: Path, names: Iterator[str]) -> None:
    for name in names:
        if name.startswith(("/", "\\", "~")) or ".." in re.split(r"[/\\]", name) or ":" in name or "\0" in name:
            raise DataError(f"{str(path)!r} names {name[:80]!r}, which is not inside the folder; data is read from there only.")
