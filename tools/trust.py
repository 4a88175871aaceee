"""The trust matrix in Markdown: the grids of ``tests/trust/grids`` with what ``make trust`` has recorded of each cell."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT / "tests" / "trust" / "results.json"

SHOWN = {"passed": "✓", "refused": "refused", "failed": "**failed**", "skipped": "skipped"}


def matrix(key: str, recorded: Path = RECORDED) -> str:
    """One grid, with the reasons of what was skipped, or has no test, below it.

    Raises:
        LookupError: there is no such grid.
    """
    # The tests are no package that type checkers know.
    grids: Mapping[str, Any] = importlib.import_module("tests.trust.grids").GRIDS
    if key not in grids:
        raise LookupError(f"There is no grid {key!r}; there are {', '.join(grids)}.")
    grid = grids[key]
    known = cells(recorded)
    notes: list[str] = []

    def shown(row: str, column: str) -> str:
        if (row, column) in grid.without:
            return f"none{_note(notes, grid.without[row, column])}"
        found = known.get((key, row, column))
        if found is None:
            return "not run"
        mark = SHOWN[found["outcome"]]
        return mark + "".join(_note(notes, reason) for reason in (*found["reasons"], *found["facts"]))

    lines = [[grid.what, *grid.columns], ["---"] * (1 + len(grid.columns))]
    lines += [[row, *(shown(row, column) for column in grid.columns)] for row in grid.rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    below = "\n".join(f"{number}. {note}" for number, note in enumerate(notes, start=1))
    return f"{table}\n\n{below}\n" if below else f"{table}\n"


def cells(recorded: Path = RECORDED) -> dict[tuple[str, str, str], dict[str, Any]]:
    """What was recorded, by grid, row and column."""
    if not recorded.exists():
        return {}
    data = json.loads(recorded.read_text(encoding="utf-8"))
    return {(one["grid"], one["row"], one["column"]): one for one in data["cells"]}


def versions(recorded: Path = RECORDED) -> str:
    """What the cells were recorded with."""
    if not recorded.exists():
        return "*Nothing is recorded: run `make trust`.*"
    data = json.loads(recorded.read_text(encoding="utf-8"))
    return "Recorded with " + ", ".join(f"{name} {number}" for name, number in sorted(data["versions"].items())) + ", by `make trust`."


def _note(notes: list[str], text: str) -> str:
    said = " ".join(text.split()).replace("|", "\\|")
    if said not in notes:
        notes.append(said)
    return f" <sup>{notes.index(said) + 1}</sup>"
