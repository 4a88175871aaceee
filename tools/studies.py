"""The studies of ``benchmarks/studies`` in Markdown, and their pages for the site: what ``make study`` has kept of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from paring.report.tables import Table
from paring.study import tables
from paring.study.records import Findings

ROOT = Path(__file__).resolve().parent.parent
NAMES = tuple(sorted(path.stem for path in (ROOT / "benchmarks" / "studies").glob("*.yaml")))
RESULTS = ROOT / "benchmarks" / "results" / "studies"
FINDINGS, PAGE = "findings.json", "report.html"


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
    path = kept / name / FINDINGS
    if not path.exists():
        return f"*Not measured yet: there is no `{path.relative_to(kept.parent.parent.parent).as_posix()}`.*"
    findings = Findings.from_json(path.read_text(encoding="utf-8"))
    made = [_markdown(one) for one in PARTS[part](findings)]
    return "\n\n".join([*made, _measured(findings)] if part == "results" else made)


def pages(kept: Path = RESULTS) -> dict[str, Path]:
    """Where each study's page belongs in the site, and where it lies."""
    found = {name: kept / name / PAGE for name in NAMES}
    return {f"studies/{name}-report.html": path for name, path in found.items() if path.exists()}


def _markdown(made: Table) -> str:
    lines = [[name for name, _ in made.columns], ["---:" if number else "---" for _, number in made.columns]]
    lines += [[cell.text.replace("|", "\\|") for cell in row] for row in made.rows]
    return f"{made.caption}:\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _measured(findings: Findings) -> str:
    versions = ", ".join(f"{name} {' or '.join(numbers)}" for name, numbers in sorted(findings.versions.items()))
    machines = "; ".join(", ".join(f"{name} {value}" for name, value in sorted(one.items()) if value) for one in findings.machines)
    seeds = ", ".join(map(str, findings.seeds))
    return f"Measured with seeds {seeds}; {machines}; {versions}. Repeated by `{findings.command}`."
