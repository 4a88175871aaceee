"""Reading a data set: a file, a folder of files, or a hub id, through the ``datasets`` library."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Value, load_dataset, load_from_disk

from paring.core.errors import DataError, near

BUILDERS = {".tsv": "csv", ".csv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}
"""File endings and the builder of ``datasets`` that reads them."""

ROW = "__row__"
"""A column with each row's number in its file, counted from 1, which outlives shuffling and splitting."""

HELD_OUT = ("validation", "valid", "val", "dev", "test")
"""Names of splits that are evaluated on, the preferred first."""


def read(name: str, split: str, config: str | None = None) -> Dataset:
    """One split of a data set.

    A ``.tsv`` has a header, one row a line, one tab between fields, no quoting. All cells of ``.tsv`` and ``.csv`` are read as
    text, so that a text ``"NA"`` or ``"007"`` stays what it is.

    Raises:
        DataError: nothing there, not UTF-8, malformed, or without rows.
    """
    path = Path(name)
    if path.is_file():
        rows = _file(path)
    elif path.is_dir():
        rows = _folder(path, split, config)
    else:
        rows = _hub(name, split, config)
    if len(rows) == 0:
        raise DataError(f"{name!r} holds no rows{f' in split {split!r}' if not path.is_file() else ''}; give a data set with at least one.")
    return rows.add_column(ROW, list(range(1, len(rows) + 1)))


def held_out_split(name: str, config: str | None = None) -> str | None:
    """The split of a folder or hub data set that is meant to be evaluated on, if it has one; ``None`` for a file."""
    path = Path(name)
    if path.is_file():
        return None
    if path.is_dir() and _files(path):
        found: Sequence[str] = [file.stem for file in _files(path)]
    else:
        found = _split_names(name, config)
    return next((split for split in HELD_OUT if split in found), None)


def _file(path: Path) -> Dataset:
    builder = BUILDERS.get(path.suffix.lower())
    if builder is None:
        raise DataError(f"{str(path)!r}: files that end in {path.suffix or 'nothing'!r} are not read; use {', '.join(BUILDERS)}.")
    if path.stat().st_size == 0:
        raise DataError(f"{str(path)!r} is an empty file.")
    options: dict[str, Any] = {}
    if builder != "parquet":
        _check_utf8(path)
    if builder == "csv":
        tabs = path.suffix.lower() == ".tsv"
        options = {"delimiter": "\t" if tabs else ",", "keep_default_na": False, "na_filter": False}
        if tabs:
            options["quoting"] = csv.QUOTE_NONE
        options["features"] = Features({name: Value("string") for name in _header(path, tabs)})
    try:
        rows = load_dataset(builder, data_files={"train": str(path)}, split="train", **options)
    except Exception as error:
        raise DataError(f"{str(path)!r} could not be read as {path.suffix[1:]}: {_innermost(error)}") from error
    assert isinstance(rows, Dataset)
    return rows


def _header(path: Path, tabs: bool) -> list[str]:
    """The column names, once every row is known to have as many fields: pandas would shift or drop what is too much."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(file)
        try:
            header = next((row for row in reader if row), [])
            count = 0
            for row in reader:
                if row and len(row) != len(header):
                    raise DataError(
                        f"{str(path)!r} could not be read: line {reader.line_num} has {len(row)} fields, the header {len(header)} "
                        f"({', '.join(header)}). {'A field may hold no tab.' if tabs else 'Put quotes around a field that holds a comma.'}"
                    )
                count += bool(row)
        except csv.Error as error:
            raise DataError(f"{str(path)!r} could not be read: line {reader.line_num}: {error}.") from error
    if not count:
        raise DataError(f"{str(path)!r} holds a header and no rows; the first line names the columns, data starts on the second.")
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise DataError(f"{str(path)!r} names column {doubled[0]!r} twice in its header; rename one.")
    return header


def _check_utf8(path: Path) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                raise DataError(
                    f"{str(path)!r} is not UTF-8: byte 0x{error.object[error.start]:02x} in line {line}. Save it as UTF-8 "
                    f"(for instance: iconv -f latin1 -t utf-8 {path.name} > utf8-{path.name})."
                ) from None
            line += chunk.count(b"\n")


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and file.suffix.lower() in BUILDERS)


def _folder(folder: Path, split: str, config: str | None) -> Dataset:
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        saved = load_from_disk(str(folder))
        if isinstance(saved, DatasetDict):
            if split not in saved:
                raise DataError(f"{str(folder)!r} has no split {split!r}, only {', '.join(map(str, saved))}.")
            return saved[split]
        assert isinstance(saved, Dataset)
        return saved
    files = _files(folder)
    match = [file for file in files if file.stem == split]
    if match:
        return _file(match[0])
    if files:
        stems = [file.stem for file in files]
        raise DataError(f"{str(folder)!r} has no file for split {split!r}, only {', '.join(f.name for f in files)}.{near(split, stems)}")
    if not any(folder.rglob("*.parquet")) and not any(folder.rglob("*.jsonl")) and not any(folder.rglob("*.csv")):
        raise DataError(f"The folder {str(folder)!r} holds no data; expected files such as train.tsv ({', '.join(BUILDERS)}).")
    return _hub(str(folder), split, config)


def _hub(name: str, split: str, config: str | None) -> Dataset:
    path = Path(name)
    if path.suffix.lower() in BUILDERS or name.startswith((".", "/", "~")) or name.count("/") > 1:
        beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"There is no file or folder {name!r}.{near(path.name, beside)}")
    try:
        rows = load_dataset(name, config, split=split)
    except Exception as error:
        raise DataError(
            f"{name!r} is neither a file nor a folder here, and split {split!r} could not be loaded from the hub: {_innermost(error)}"
        ) from error
    assert isinstance(rows, Dataset)
    return rows


def _split_names(name: str, config: str | None) -> list[str]:
    from datasets import get_dataset_split_names

    try:
        return [str(split) for split in get_dataset_split_names(name, config)]
    except Exception:  # noqa: BLE001 - many kinds, from two packages and the network
        # Reading the training split says what is wrong with the name.
        return []


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
