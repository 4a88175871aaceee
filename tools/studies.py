"""The studies of ``benchmarks/studies`` in Markdown, and their pages for the site, out of what ``make study`` has kept of each."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path

from paring.cli.commands.study import FINDINGS
from paring.report.tables import Cell, Table
from paring.study import tables
from paring.study.page import render_study
from paring.study.records import Entry, Findings
from paring.study.statistics import compare
from tools.markdown import missing, rows

ROOT = Path(__file__).resolve().parent.parent
NAMES = tuple(sorted(path.stem for path in (ROOT / "benchmarks" / "studies").glob("*.yaml")))
RESULTS = ROOT / "benchmarks" / "results" / "studies"


def results(findings: Findings) -> list[Table]:
    """A table for each task."""
    return [tables.results_table(findings, task, task) for task in findings.metrics]


def differences(findings: Findings) -> list[Table]:
    """Differences to the first contestant."""
    found = tables.differences_table(findings, findings.names[0])
    return [] if found is None else [found]


def rivals(findings: Findings) -> list[Table]:
    """Each cut minus whoever of about its size, or smaller, was best on the tuning rows of the task, as a user would have chosen."""
    entries = [entry for entry in findings.entries if any(entry.parameters)]
    made = []
    for name in (name for name in findings.names if name.startswith(CUT)):
        chosen = {}
        for task, cut in findings.of(name).items():
            others = (one for one in entries if one.task == task and not one.name.startswith(CUT))
            near = [(one.tuned, one) for one in others if one.tuned is not None and _size(one) <= LARGER * _size(cut)]
            if near:
                best = max if findings.metrics[task].larger_is_better else min
                chosen[task] = best(near, key=itemgetter(0))[1]
        theirs = tuple(replace(one, contestant=RIVAL, budget=None) for one in chosen.values())
        found = compare(replace(findings, entries=(*findings.entries, *theirs)), name, RIVAL)
        told = (tables.signed(found.tasks.get(task), 2) for task in findings.metrics)
        who = "; ".join(f"{task}: {one.name}" for task, one in chosen.items())
        made.append(tuple(Cell(text=text) for text in (name, tables.signed(found.overall, 2), *told, who)))
    columns = (("the cut", False), ("minus its rival", True), *((task, True) for task in findings.metrics), ("the rival", False))
    return [Table(key="rivals", caption="Points, with intervals of 95%", columns=columns, rows=tuple(made))]


def _size(entry: Entry) -> float:
    return statistics.fmean(size for size in entry.parameters if size is not None)


CUT = "cut to"
"""How paring's own cuts are called."""

RIVAL = "the rival"

LARGER = 1.1
"""How much larger a rival may be: no two ways of being small can be set to the same number of parameters."""

PARTS: Mapping[str, Callable[[Findings], Sequence[Table]]] = {
    "results": results,
    "differences": differences,
    "sizes": lambda findings: [tables.dominated_table(findings)],
    "valleys": lambda findings: [tables.valleys_table(findings)],
    "costs": lambda findings: [tables.costs_table(findings)],
}


MORE: Mapping[str, Mapping[str, Callable[[Findings], Sequence[Table]]]] = {"sizes": {"rivals": rivals}}
"""Parts that one study alone has."""


def names() -> tuple[str, ...]:
    """The names of all tables, ``STUDY-PART``."""
    return tuple(f"{name}-{part}" for name in NAMES for part in _parts(name))


def table(key: str, kept: Path = RESULTS) -> str:
    """A part of a study in Markdown; for a study that has not been run, a line that says so.

    Args:
        key: one of :func:`names`.
        kept: where the studies' folders lie.

    Raises:
        LookupError: there is no such study or part.
    """
    if key not in names():
        raise LookupError(f"There is no table {key!r} of a study; there are {', '.join(names())}.")
    name, _, part = key.rpartition("-")
    findings = _found(name, kept)
    if findings is None:
        return missing(kept / name / FINDINGS, kept.parent.parent.parent)
    made = [_markdown(one) for one in _parts(name)[part](findings)]
    return "\n\n".join([*made, _measured(findings)] if part == "results" else made)


def pages(kept: Path = RESULTS) -> dict[str, str]:
    """The page of each study that was run, by where it belongs in the site."""
    found = {name: _found(name, kept) for name in NAMES}
    return {f"studies/{name}-report.html": render_study(findings) for name, findings in found.items() if findings is not None}


def _parts(name: str) -> Mapping[str, Callable[[Findings], Sequence[Table]]]:
    return {**PARTS, **MORE.get(name, {})}


def _found(name: str, kept: Path) -> Findings | None:
    path = kept / name / FINDINGS
    return Findings.from_json(path.read_text(encoding="utf-8")) if path.exists() else None


def _markdown(made: Table) -> str:
    heads, numbers = zip(*made.columns, strict=True)
    body = ([cell.text.replace("|", "\\|") for cell in row] for row in made.rows)
    return f"{made.caption}:\n\n{rows(heads, body, numbers)}"


def _measured(findings: Findings) -> str:
    versions = ", ".join(f"{name} {' or '.join(numbers)}" for name, numbers in sorted(findings.versions.items()))
    machines = "; ".join(", ".join(f"{name} {value}" for name, value in sorted(one.items()) if value) for one in findings.machines)
    seeds = ", ".join(map(str, findings.seeds))
    return f"Measured with seeds {seeds}; {machines}; {versions}. Repeated by `{findings.command}`."
