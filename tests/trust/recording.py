"""A pytest plugin that keeps what came of each cell of the trust matrix.

    python -m pytest -p tests.trust.recording --trust tests/trust/results.json -m trust

Cells that this run has tried are replaced in the file, others stay. A cell that was tried in several tests is as good as the worst of them.
Tests may add facts worth printing, such as a number of trials, by ``record_property("trust", "300 trials")``.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl", "bitsandbytes", "torchao", "sentence-transformers")
WORST = ("failed", "skipped", "refused", "passed")
"""Outcomes; the first of those that tests of one cell had is the cell's."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """One option."""
    parser.addoption("--trust", metavar="FILE", type=Path, help="keep what came of the trust matrix's cells in this file")


def pytest_configure(config: pytest.Config) -> None:
    """Record in the process that sees all reports; the others pass on what they know."""
    path = config.getoption("--trust")
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recording(Path(path)), "trust-recording")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Put the cells that a test belongs to on its report, so that they travel to the process that records."""
    result: Any = yield
    report: pytest.TestReport = result.get_result()
    for mark in item.iter_markers("trust"):
        report.user_properties.append(("cell", [*mark.args, mark.kwargs.get("refused", False)]))


class Recording:
    """Collects outcomes, and writes them when the session ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: dict[tuple[str, str, str], list[dict[str, Any]]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Of a test's three phases its call counts, and any that did not pass."""
        if report.when != "call" and report.passed:
            return
        facts = [str(value) for name, value in report.user_properties if name == "trust"]
        for name, value in report.user_properties:
            if name != "cell":
                continue
            grid, row, column, refused = value  # type: ignore[misc]
            outcome = "failed" if report.failed else "skipped" if report.skipped else "refused" if refused else "passed"
            reason = report.longrepr[2].removeprefix("Skipped: ") if report.skipped and isinstance(report.longrepr, tuple) else ""
            found = {"outcome": outcome, "reason": reason, "facts": facts, "seconds": report.duration}
            self.seen.setdefault((grid, row, column), []).append(found)

    def pytest_sessionfinish(self) -> None:
        """Merge with what is there."""
        if not self.seen:
            return
        data = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {"cells": [], "versions": {}}
        cells = {(one["grid"], one["row"], one["column"]): one for one in data["cells"]}
        for place, found in self.seen.items():
            cells[place] = _cell(place, found)
        data = {"versions": _versions(), "cells": [cells[place] for place in sorted(cells)]}
        self.path.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _cell(place: tuple[str, str, str], found: list[dict[str, Any]]) -> dict[str, Any]:
    outcome = min((one["outcome"] for one in found), key=WORST.index)
    return {
        **dict(zip(("grid", "row", "column"), place, strict=True)),
        "outcome": outcome,
        "tests": len(found),
        "reasons": sorted({one["reason"] for one in found if one["reason"]}),
        "facts": sorted({fact for one in found for fact in one["facts"]}),
        "seconds": round(sum(one["seconds"] for one in found), 1),
    }


def _versions() -> dict[str, str]:
    known = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            known[name] = "not installed"
    return known
