"""What the site's tables are written with."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

_NUMBERS = re.compile(r"[-+±\d.,%e \[\]to]+")


def rows(head: Sequence[str], body: Iterable[Sequence[str]], numbers: Sequence[bool] | None = None) -> str:
    """A Markdown table.

    Args:
        head: the columns' names.
        body: rows of as many cells.
        numbers: which columns are set to the right; by default those that hold numbers alone.
    """
    body = [list(row) for row in body]
    if numbers is None:
        numbers = [bool(body) and all(_NUMBERS.fullmatch(row[index]) for row in body) for index in range(len(head))]
    rule = ["---:" if right else "---" for right in numbers]
    return "\n".join("| " + " | ".join(row) + " |" for row in (list(head), rule, *body))


def missing(path: Path, root: Path) -> str:
    """What stands in the place of a table whose results are not there."""
    return f"*Not measured yet: there is no `{path.relative_to(root).as_posix()}`.*"


def points(values: Sequence[float], unit: float = 100.0, sign: str = "") -> str:
    """The mean, and the least and the most."""
    mean, least, most = (unit * one for one in (statistics.fmean(values), min(values), max(values)))
    return f"{mean:{sign}.2f} [{least:{sign}.2f}, {most:{sign}.2f}]"
