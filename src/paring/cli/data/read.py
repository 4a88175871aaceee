"""Reading a data set: a file, a folder of files, or a hub id, through the ``datasets`` library."""

from __future__ import annotations

import codecs
import csv
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Value, load_dataset, load_from_disk
from datasets import config as datasets_config

from paring.cli.console import say
from paring.cli.data.safe import check_inside, check_json, check_packed
from paring.core.errors import DataError, near

BUILDERS = {".tsv": "csv", ".csv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}
"""File endings and the builder of ``datasets`` that reads them."""

ROW = "__row__"
"""A column with each row's number in its file, counted from 1, which outlives shuffling and splitting."""

HELD_OUT = ("validation", "valid", "val", "dev", "test")
"""Names of splits that are evaluated on, the preferred first."""

TEXTS: tuple[str, ...] = (
    *("text", "sentence", "content", "review", "tweet", "question", "utterance"),
    *("sentence1", "sentence2", "premise", "hypothesis", "question1", "question2", "text1", "text2"),
    *("prompt", "completion", "messages"),
)
"""Columns that are taken for texts where nobody says which ones are."""


def read(name: str, split: str, config: str | None = None, texts: Sequence[str] | None = None) -> Dataset:
    """One split of a data set; says how many of its rows have no text.

    A ``.tsv`` has a header, one row a line, one tab between fields, no quoting. All cells of ``.tsv`` and ``.csv`` are read as
    text, so that a text ``"NA"`` or ``"007"`` stays what it is.

    Args:
        name: a file, a folder or a hub id.
        split: which split of a folder or hub data set.
        config: configuration of a hub data set.
        texts: the columns with text, by default those of :data:`TEXTS` that are there.

    Raises:
        DataError: nothing there, not UTF-8, malformed, without rows, or without a single text.
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
    if ROW in rows.column_names:
        raise DataError(f"{name!r} has a column {ROW!r}, which is a name that paring takes for the rows' numbers; rename it.")
    _check_texts(rows, name, [column for column in (texts or TEXTS) if column in rows.column_names])
    return rows.add_column(ROW, list(range(1, len(rows) + 1)))


def _check_texts(rows: Dataset, name: str, columns: Sequence[str]) -> None:
    if not columns:
        return
    blank = [
        row
        for row, cells in enumerate(zip(*(rows[column] for column in columns), strict=True), start=1)
        if all(cell is None or (isinstance(cell, str) and not cell.strip()) for cell in cells)
    ]
    where = f"column{'s' if len(columns) > 1 else ''} {', '.join(map(repr, columns))}"
    if len(blank) == len(rows):
        raise DataError(f"{name!r} has no text in any of its {len(rows)} rows: {where} is empty. Fill it, or name another --text_columns.")
    if blank:
        say(f"paring: warning: {len(blank)} of {len(rows)} rows of {name!r} have no text in {where}; the first is row {blank[0]}")


def held_out_split(name: str, config: str | None = None) -> str | None:
    """The split of a folder or hub data set that is meant to be evaluated on, if it has one; ``None`` for a file."""
    path = Path(name)
    if path.is_file():
        return None
    if path.is_dir() and _files(path):
        found: Sequence[str] = [file.stem for file in _files(path)]
    else:
        if path.is_dir():
            check_inside(path)
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
    check_packed(path)
    if builder == "json":
        check_json(path)
    if builder == "csv":
        tabs = path.suffix.lower() == ".tsv"
        options = {"delimiter": "\t" if tabs else ",", "keep_default_na": False, "na_filter": False}
        if tabs:
            options["quoting"] = csv.QUOTE_NONE
        options["features"] = Features({name: Value("string") for name in _header(path, tabs)})
    try:
        with _quiet(), _uncounted():
            rows = load_dataset(builder, data_files={"train": str(path)}, split="train", **options)
    except Exception as error:
        fault = _json_fault(path) if builder == "json" else None
        if fault is None:
            # Rows are counted from 0 there.
            said = re.sub(r"\bin row (\d+)", lambda found: f"in row {int(found[1]) + 1}", _innermost(error)).rstrip(".")
            cure = "Give all rows the same columns, with values of one kind." if builder == "json" else "Write the file again."
            fault = f"{said}. {cure}"
        raise DataError(f"{str(path)!r} could not be read as {path.suffix[1:]}: {fault}") from error
    assert isinstance(rows, Dataset)
    return rows


@contextmanager
def _uncounted() -> Iterator[None]:
    """``datasets`` reports every reading of a local file to a server that counts downloads; nothing is downloaded here."""
    before = datasets_config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets_config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        datasets_config.HF_UPDATE_DOWNLOAD_COUNTS = before


@contextmanager
def _quiet() -> Iterator[None]:
    """``datasets`` logs an error before it raises it, which would say it twice."""
    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _json_fault(path: Path) -> str | None:
    """What is wrong with which line; ``None`` if each is an object by itself, or all of them are one list."""
    if path.suffix.lower() == ".json":
        try:
            json.loads(path.read_text(encoding="utf-8-sig"))
        except json.JSONDecodeError as error:
            whole = f"line {error.lineno} is no JSON ({_said(error)}). Mend that line."
        except ValueError as error:  # a number with thousands of digits
            whole = f"it holds what cannot be read ({error}). Write such a number as text."
        else:
            return None
    else:
        whole = None
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line.rstrip("\r\n"))
            except ValueError as error:
                # A file in which not even the first line stands by itself is one value over many lines.
                many = f"line {number} is no JSON ({_said(error)}). Every line must be an object by itself; mend it."
                return whole if whole is not None and number == 1 else many
            if not isinstance(value, dict):
                return f'line {number} is no object but {line.strip()[:40]!r}. Write each row as an object, such as {{"text": "..."}}.'
    return None


def _said(error: ValueError) -> str:
    return f"{error.msg.removesuffix(' at')} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _header(path: Path, tabs: bool) -> list[str]:
    """The column names, once every row is known to have as many fields: pandas would shift or drop what is too much."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(file)
        try:
            header = next((row for row in reader if row), [])
            count = 0
            for row in reader:
                if row and len(row) != len(header):
                    parted = "tabs" if tabs else "commas"
                    many = "A field may hold no tab." if tabs else "Put quotes around a field that holds a comma."
                    few = f"It has too few: give every line all fields, parted by {parted}, an empty one too."
                    names = " ".join(", ".join(header).split())[:200]  # a quoted name may have lines of its own
                    raise DataError(
                        f"{str(path)!r} could not be read: line {reader.line_num} has {len(row)} field{'s' * (len(row) != 1)}, the header "
                        f"{len(header)} ({names}). {few if len(row) < len(header) else many}"
                    )
                count += bool(row)
        except csv.Error as error:
            raise DataError(f"{str(path)!r} could not be read: line {reader.line_num}: {error}.") from error
    if not count:
        raise DataError(f"{str(path)!r} holds a header and no rows; the first line names the columns, data starts on the second.")
    doubled = sorted(name for name, times in Counter(header).items() if times > 1)
    if doubled:
        raise DataError(f"{str(path)!r} names column {doubled[0]!r} twice in its header; rename one.")
    return header


def _check_utf8(path: Path) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    with path.open("rb") as file:
        start = file.read(1024)
        encoding = _wide(start)
        if encoding is not None:
            raise DataError(
                f"{str(path)!r} is in {encoding.upper()}, not in UTF-8. Save it as UTF-8 "
                f"(for instance: iconv -f {encoding} -t utf-8 {path.name} > utf8-{path.name})."
            )
        file.seek(0)
        chunk = start
        while chunk:
            chunk = file.read(1 << 20)
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                raise DataError(
                    f"{str(path)!r} is not UTF-8: byte 0x{error.object[error.start]:02x} in line {line}. Save it as UTF-8 "
                    f"(for instance: iconv -f latin1 -t utf-8 {path.name} > utf8-{path.name})."
                ) from None
            line += chunk.count(b"\n")


def _wide(start: bytes) -> str | None:
    """The encoding of two or four bytes a character that a file's mark names, or its zero bytes give away."""
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # Text in Latin letters has a zero in nearly every second byte then.
    for first, name in ((1, "utf-16le"), (0, "utf-16be")):
        half = start[first::2]
        if len(half) > 1 and half.count(0) > 0.8 * len(half) and 0 not in start[1 - first :: 2]:
            return name
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and file.suffix.lower() in BUILDERS)


def _folder(folder: Path, split: str, config: str | None) -> Dataset:
    check_inside(folder)
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        try:
            saved = load_from_disk(str(folder))
        except Exception as error:
            raise DataError(f"{str(folder)!r} was saved by datasets, but is damaged: {_innermost(error)}") from error
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
    return _loaded(str(folder), split, config)


def _hub(name: str, split: str, config: str | None) -> Dataset:
    check_there(name)
    return _loaded(name, split, config)


def check_there(name: str) -> None:
    """Refuse what is neither here nor a name that something on the hub can have.

    Raises:
        DataError: names what is beside it.
    """
    path = Path(name)
    if path.exists():
        return
    if path.suffix.lower() in BUILDERS or name.startswith((".", "/", "~")) or name.count("/") > 1:
        beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"There is no file or folder {name!r}.{near(path.name, beside)}")


def _loaded(name: str, split: str, config: str | None) -> Dataset:
    """What ``datasets`` makes of a folder or of a name on the hub."""
    try:
        with _quiet():
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
