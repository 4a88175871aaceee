"""The trust matrix says what there is: no cell that was recorded has failed or is no more; one that was not run shows as that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.trust.grid import Grid
from tests.trust.grids import GRIDS, cell
from tests.trust.recording import Recording
from tools import matrix, trust

CELLS = {
    (key, row, column) for key, grid in GRIDS.items() for row in grid.rows for column in grid.columns if (row, column) not in grid.without
}


def test_no_cell_failed_and_none_is_unknown() -> None:
    known = trust.cells()
    assert known.keys() - CELLS == set(), "results.json knows cells that are no more: delete it, and run `make trust`"
    assert {place for place, found in known.items() if found["outcome"] == "failed"} == set()


def test_a_skipped_cell_says_why() -> None:
    for place, found in trust.cells().items():
        assert found["outcome"] != "skipped" or found["reasons"], place


def test_a_cell_is_as_good_as_the_worst_of_its_tests(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    key, row, column = next(iter(sorted(CELLS)))
    recording = Recording(path)
    for outcome, reason in (("passed", ""), ("skipped", "no such | package"), ("passed", "")):
        found: dict[str, Any] = {"outcome": outcome, "reason": reason, "facts": ["300 trials"], "seconds": 1.0}
        recording.seen.setdefault((key, row, column), []).append(found)
    recording.pytest_sessionfinish()
    (kept,) = json.loads(path.read_text())["cells"]
    assert (kept["outcome"], kept["tests"], kept["seconds"]) == ("skipped", 3, 3.0)
    made = trust.matrix(key, path)
    assert "skipped <sup>1</sup> <sup>2</sup>" in made
    assert "1. no such \\| package" in made
    assert "✓" not in made
    assert "not run" in made
    # Another run replaces what it has tried, and leaves the rest.
    again = Recording(path)
    again.seen[key, row, column] = [{"outcome": "passed", "reason": "", "facts": [], "seconds": 1.0}]
    again.pytest_sessionfinish()
    assert "✓" in trust.matrix(key, path)


def test_a_cell_that_is_not_there_is_no_mark() -> None:
    with pytest.raises(ValueError, match="no cell"):
        cell("models", "BERT", "flies")
    with pytest.raises(ValueError, match="no such cells"):
        Grid(title="", what="", rows=("a",), columns=("b",), without={("a", "c"): "why"})


def test_environments_that_were_run_have_no_failure_that_is_not_shown() -> None:
    rows = matrix.rows()
    assert [row[0] for row in rows] == list(matrix.ENVIRONMENTS)
    for row in rows:
        assert row[-1].startswith("not run") or " passed" in row[-1]


def test_a_report_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "report.xml"
    cases = '<testcase classname="a" name="one"/><testcase classname="a" name="two"><failure/></testcase><testcase><skipped/></testcase>'
    path.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    assert matrix.outcome(path) == {"passed": 1, "skipped": 1, "failed": ["a.two"]}
