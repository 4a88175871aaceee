"""The page of a study: what was compared, what can be told apart, and what it cost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from paring.report.page import fill
from paring.report.planes import draw_ranks
from paring.report.tables import plain_table
from paring.report.words import NOTHING, count
from paring.report.write import write_page
from paring.study import tables
from paring.study.figures import frontiers, rates
from paring.study.notices import held_out, mixed
from paring.study.ranks import Ranks, mean_ranks
from paring.study.records import Findings
from paring.study.statistics import FEW

_FEW_TASKS = 10
"""Tasks below which Friedman's chi-squared is rough."""


def render_study(findings: Findings, *, reference: str | None = None) -> str:
    """Write a study as a page of HTML that needs nothing else: no script, no font, no network. The same findings give the same bytes.

    Args:
        findings: what was found.
        reference: the name that the others are compared with; ``None`` takes the first one.

    Raises:
        DataError: the study has no such name.
    """
    against = reference or next(iter(findings.names), NOTHING)
    ranks = mean_ranks(findings)
    environment = [plain_table(findings.versions, "versions", "Versions", ("Package", "Version"))]
    for index, machine in enumerate(findings.machines):
        environment.append(plain_table(machine, f"machine-{index}", "Machine", ("Property", "Value")))
    return fill(
        "study.html",
        title=findings.name,
        facts=_facts(findings),
        notices=_notices(findings),
        compared=[
            table
            for table in (tables.tasks_table(findings), tables.failures_table(findings), tables.edges_table(findings))
            if table is not None
        ],
        results=[tables.results_table(findings, task, f"results-{index}") for index, task in enumerate(findings.metrics)],
        reference=against,
        differences=tables.differences_table(findings, against),
        differences_said=_tested(findings),
        ranks=draw_ranks(dict(ranks.means), ranks.difference, ranks.groups, "ranks-figure") if ranks.means else None,
        ranks_said=_ranked(ranks),
        frontiers=frontiers(findings),
        dominated=tables.dominated_table(findings),
        rates=rates(findings),
        valleys=tables.valleys_table(findings),
        costs=tables.costs_table(findings),
        command=findings.command,
        environment=[table for table in environment if table is not None],
    )


def write_study_page(findings: Findings, path: str | os.PathLike[str], *, reference: str | None = None, overwrite: bool = False) -> Path:
    """Write the page of a study; see :func:`render_study`. The file appears complete or not at all.

    Raises:
        DataError: the study has no such name.
        OutputExistsError: ``path`` is there and ``overwrite`` is false, or it is a folder.
        ExportError: it could not be written.
    """
    return write_page(Path(path), lambda: render_study(findings, reference=reference), overwrite)


def _many(number: int, word: str) -> str:
    return f"{count(number)} {word}{'' if number == 1 else 's'}"


def _facts(findings: Findings) -> tuple[str, ...]:
    runs = sum(findings.counts.values())
    ends = ", ".join(f"{count(number)} {state}" for state, number in findings.counts.items())
    seeds = ", ".join(map(str, findings.seeds))
    return (
        _many(len(findings.names), "contestant"),
        _many(len(findings.metrics), "task"),
        f"{_many(len(findings.seeds), 'seed')}: {seeds}" if seeds else "no seed",
        f"{_many(runs, 'run')}: {ends}" if runs else "no run",
    )


def _notices(findings: Findings) -> tuple[str, ...]:
    """What a reader must not miss."""
    notices = [held_out(findings.held_out)] if findings.held_out else []
    if len(findings.seeds) == 1:
        notices.append("One seed alone: there are no intervals, and no contestants are told apart.")
    elif len(findings.seeds) < FEW:
        few = _many(len(findings.seeds), "seed")
        notices.append(
            f"Only {few}: intervals are wide, and rest on scores being about normal, which so few can't show. On one task no sign-flip "
            f"test can have p below {2.0 ** (1 - len(findings.seeds)):.2g}. Contestants that are not told apart may differ all the same."
        )
    failed = {f"{entry.name} on {entry.task}": len(entry.errors) for entry in findings.entries if entry.errors}
    if failed:
        notices.append(f"{_many(sum(failed.values()), 'run')} failed: {tables.listing(list(failed))}. What went wrong is told below.")
    edges = [f"{entry.name} on {entry.task}" for entry in findings.entries if entry.edges]
    if edges:
        notices.append(
            f"What was chosen lies at the edge of what was tried for {tables.listing(edges)}, so something better may lie beyond. "
            "All such choices are listed below."
        )
    return (*notices, *mixed(findings))


def _tested(findings: Findings) -> str:
    """What the differences must not be taken for."""
    others, pairs = len(findings.names) - 1, len(findings.seeds) * len(findings.metrics)
    said = []
    if others and 0 < pairs < 10:
        said.append(f"With at most {_many(pairs, 'pair')} no p value of sign flips can be below {2 ** (1 - pairs):.2g}.")
    if others > 1:
        said.append(f"Holm's correction is for the {others} comparisons of the table.")
    if len({(metric.name, metric.points) for metric in findings.metrics.values()}) > 1:
        said.append("Not all tasks have the same metric, so the mean over tasks adds up points of different worth; ranks do not.")
    return " ".join(said)


def _ranked(ranks: Ranks) -> str:
    said = [_absent(ranks.left_out)] if ranks.left_out else []
    if not ranks.means:
        return " ".join([ranks.reason, *said])
    said.insert(0, f"Over {_many(len(ranks.tasks), 'task')}, each scored by the mean over seeds; 1 is best.")
    if ranks.p is not None:
        rough = ", roughly, since there are few tasks" if len(ranks.tasks) < _FEW_TASKS else ""
        said.append(f"Friedman's test that all are alike: p = {ranks.p:.2g}{rough}.")
    if ranks.difference is not None:
        said.append(
            f"By Nemenyi's test at 5%, means that are at most {ranks.difference:.2f} apart (joined by a bar) can't be told apart."
            if ranks.groups
            else f"By Nemenyi's test at 5%, means that are more than {ranks.difference:.2f} apart differ, as all of them do."
        )
    return " ".join([*said, ranks.reason]).strip()


def _absent(names: Sequence[str]) -> str:
    return f"Without a rank, since not every seed came to its end on every task: {', '.join(names)}."
