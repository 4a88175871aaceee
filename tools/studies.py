"""The studies of ``benchmarks/studies`` in Markdown, and their pages for the site, out of what ``make study`` has kept of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from paring.cli.commands.study import FINDINGS
from paring.report.tables import Table
from paring.study import tables
from paring.study.page import render_study
from paring.study.records import Findings
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


PARTS: Mapping[str, Callable[[Findings], Sequence[Table]]] = {
    "results": results,
    "differences": differences,
    "sizes": lambda findings: [tables.dominated_table(findings)],
    "valleys": lambda findings: [tables.valleys_table(findings)],
    "costs": lambda findings: [tables.costs_table(findings)],
}


def names() -> tuple[str, ...]:
    """The names of all tables, ``STUDY-PART``."""
    return tuple(f"{name}-{part}" for name in NAMES for part in PARTS)


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
    made = [_markdown(one) for one in PARTS[part](findings)]
    return "\n\n".join([*made, _measured(findings)] if part == "results" else made)


def pages(kept: Path = RESULTS) -> dict[str, str]:
    """The page of each study that was run, by where it belongs in the site."""
    found = {name: _found(name, kept) for name in NAMES}
    return {f"studies/{name}-report.html": render_study(findings) for name, findings in found.items() if findings is not None}


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
