"""The page of a study: what was compared, what can be told apart, and what it cost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paring.report.page import fill
from paring.report.planes import Dot, Plane, Trace, draw_plane, draw_ranks
from paring.report.tables import Cell, Table, plain_table
from paring.report.words import NOTHING, brief_count, count, duration, metric_name, sentence_case, size
from paring.report.write import write_page
from paring.study.ranks import Ranks, mean_ranks
from paring.study.records import Entry, Findings, Metric
from paring.study.shapes import frontier, valley
from paring.study.statistics import FEW, Interval, compare, not_told_apart, spread


def render_study(findings: Findings, *, reference: str | None = None) -> str:
    """Write a study as a page of HTML that needs nothing else: no script, no font, no network. The same findings give the same bytes.

    Args:
        findings: what was found.
        reference: the name that the others are compared with; ``None`` takes the first one.
    """
    against = reference or next(iter(findings.names), NOTHING)
    ranks = mean_ranks(findings)
    rates = _rates(findings)
    return fill(
        "study.html",
        title=findings.name,
        facts=_facts(findings),
        notices=_notices(findings),
        results=[_results(findings, task, f"results-{index}") for index, task in enumerate(findings.metrics)],
        reference=against,
        differences=_differences(findings, against),
        ranks=draw_ranks(dict(ranks.means), ranks.difference, ranks.groups, "ranks-figure") if ranks.means else None,
        ranks_said=_said(ranks),
        frontiers=_frontiers(findings),
        rates=rates,
        valleys=_valleys(findings),
        costs=_costs(findings),
        command=findings.command,
        environment=[
            table
            for table in (
                plain_table(findings.versions, "versions", "Versions", ("Package", "Version")),
                *(
                    plain_table(machine, f"machine-{index}", "Machine", ("Property", "Value"))
                    for index, machine in enumerate(findings.machines)
                ),
            )
            if table is not None
        ],
    )


def write_study_page(findings: Findings, path: str | os.PathLike[str], *, reference: str | None = None, overwrite: bool = False) -> Path:
    """Write the page of a study; see :func:`render_study`. The file appears complete or not at all.

    Raises:
        OutputExistsError: ``path`` is there and ``overwrite`` is false, or it is a folder.
        ExportError: it could not be written.
    """
    return write_page(Path(path), lambda: render_study(findings, reference=reference), overwrite)


def _many(number: int, word: str) -> str:
    return f"{count(number)} {word}{'' if number == 1 else 's'}"


def _facts(findings: Findings) -> dict[str, str]:
    runs = sum(findings.counts.values())
    ends = ", ".join(f"{count(number)} {state}" for state, number in findings.counts.items())
    return {
        "contestants": _many(len(findings.names), "contestant"),
        "tasks": _many(len(findings.metrics), "task"),
        "seeds": _many(len(findings.seeds), "seed"),
        "runs": f"{_many(runs, 'run')}: {ends}" if runs else "no run",
    }


def _notices(findings: Findings) -> tuple[str, ...]:
    """What a reader must not miss."""
    notices = []
    if len(findings.seeds) < FEW:
        few = _many(len(findings.seeds), "seed")
        notices.append(f"Only {few}: an interval can't spread further than the values that there are, so it is narrower than it should be.")
    for entry in findings.entries:
        if entry.errors:
            first = next(iter(entry.errors))
            many = len(entry.errors)
            notices.append(
                f"{entry.name} on {entry.task}: {_many(many, 'run')} failed ({first}: {entry.errors[first]}{'; ...' if many > 1 else ''})"
            )
        if entry.edges:
            notices.append(
                f"{entry.name} on {entry.task}: the chosen {' and '.join(entry.edges)} lies at the edge of what was tried, so a better one "
                "may lie beyond."
            )
    mixed = [name for name, found in findings.versions.items() if len(found) > 1]
    if mixed:
        notices.append(f"Runs were made with several versions of {', '.join(mixed)}.")
    if len(findings.machines) > 1:
        notices.append(f"Runs were made on {len(findings.machines)} kinds of machine or with different threads, so times don't compare.")
    return tuple(notices)


def _points(metric: Metric, value: float) -> str:
    return f"{metric.points * value:.2f}"


def _spread(interval: Interval) -> str:
    between = "" if interval.low is None or interval.high is None else f" [{interval.low:.2f}, {interval.high:.2f}]"
    return f"{interval.mean:.2f}{between}"


def _known(values: Sequence[Any]) -> list[Any]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float | None], shown: Any) -> str:
    known = _known(values)
    return str(shown(float(np.mean(known)))) if known else NOTHING


def _results(findings: Findings, task: str, key: str) -> Table:
    metric, told = findings.metrics[task], not_told_apart(findings, task)
    rows = []
    for name in findings.names:
        entry = findings.of(name).get(task)
        if entry is None:
            continue
        scores = [metric.points * score for score in _known(entry.scores)]
        tuned = [trial.score for trial in entry.trials if trial.score is not None and trial.values == entry.chosen]
        rows.append(
            (
                Cell(text=name),
                Cell(text=_spread(spread(scores)) if scores else NOTHING),
                Cell(text=f"{len(scores)} of {len(entry.scores)}"),
                Cell(text=_apart(name, told) if scores else "failed"),
                Cell(text=_points(metric, tuned[0]) if tuned else NOTHING),
                Cell(text=_chosen(entry)),
                Cell(text=_mean(entry.parameters, lambda value: brief_count(round(value)))),
                Cell(text=_mean(entry.file_bytes, lambda value: size(round(value)))),
            )
        )
    name = sentence_case(metric_name(metric.name))
    columns = (
        ("Contestant", False),
        (f"{name} [95%]", True),
        ("Seeds", True),
        ("The highest mean" if metric.larger_is_better else "The lowest mean", False),
        ("On the rows chosen by", True),
        ("Chosen", False),
        ("Parameters", True),
        ("File", True),
    )
    unit = ", in percent" if metric.points == 100.0 else ""
    better = "larger" if metric.larger_is_better else "smaller"
    return Table(key=key, caption=f"{task}: {metric_name(metric.name)}{unit}, {better} is better", columns=columns, rows=tuple(rows))


def _apart(name: str, told: tuple[str, frozenset[str]] | None) -> str:
    if told is None:
        return NOTHING
    best, alike = told
    if name == best:
        return f"it is this one, or {' or '.join(sorted(alike))}" if alike else "it is this one"
    return "not told apart" if name in alike else "told apart"


def _chosen(entry: Entry) -> str:
    if entry.chosen is None:
        return "nothing"
    return ", ".join(
        f"{metric_name(name)} {value:.2g}{' (edge)' if name in entry.edges else ''}" for name, value in entry.chosen.items()
    ) or ("as given")


def _differences(findings: Findings, reference: str) -> Table | None:
    rows = []
    for name in findings.names:
        if name == reference:
            continue
        found = compare(findings, name, reference)
        cells = [_signed(found.tasks.get(task)) for task in findings.metrics]
        p = NOTHING if found.p is None else f"{found.p:.2g}"
        rows.append((Cell(text=name), *map(_cell, cells), _cell(_signed(found.overall)), _cell(p), Cell(text="; ".join(found.missing))))
    if not rows:
        return None
    columns = (("Contestant", False), *((task, True) for task in findings.metrics), ("All tasks", True), ("p", True), ("Left out", False))
    return Table(key="differences-table", caption=f"Points above {reference} [95%]", columns=columns, rows=tuple(rows))


def _cell(text: str) -> Cell:
    return Cell(text=text)


def _signed(interval: Interval | None) -> str:
    if interval is None:
        return NOTHING
    between = "" if interval.low is None or interval.high is None else f" [{interval.low:+.2f}, {interval.high:+.2f}]"
    return f"{interval.mean:+.2f}{between}"


def _said(ranks: Ranks) -> str:
    if not ranks.means:
        return ranks.reason
    said = f"Over {_many(len(ranks.tasks), 'task')}, each scored by the mean over seeds; 1 is best."
    if ranks.p is not None and ranks.difference is not None:
        said += (
            f" Friedman's test that all are alike: p = {ranks.p:.2g}. By Nemenyi's test at 5%, means that are less than "
            f"{ranks.difference:.2f} apart (joined by a bar) can't be told apart."
        )
    return f"{said} {ranks.reason}".strip()


def _frontiers(findings: Findings) -> list[Any]:
    drawn = []
    styles = {name: index for index, name in enumerate(findings.names)}
    for index, (task, metric) in enumerate(findings.metrics.items()):
        places = [place for place in frontier(findings, task) if place.parameters > 0]
        if not places:
            continue
        traces = tuple(
            Trace(
                label=f"{place.name}{' (another is smaller and no worse)' if place.dominated_by is not None else ''}",
                dots=(Dot(x=place.parameters, y=place.score.mean, low=place.score.low, high=place.score.high),),
                style=styles[place.name],
            )
            for place in places
        )
        title = f"{task}: {metric_name(metric.name)} against parameters"
        plane = Plane(title=title, traces=traces, across="parameters", shown=lambda value: _brief(value), joined=False)
        drawn.append(draw_plane(plane, f"frontier-{index}"))
    return drawn


def _brief(value: float) -> str:
    return f"{value / 1000:g}k" if 1000 <= value < 10**6 else brief_count(round(value))


def _rates(findings: Findings) -> list[Any]:
    drawn = []
    styles = {name: index for index, name in enumerate(findings.names)}
    for index, (task, metric) in enumerate(findings.metrics.items()):
        traces = []
        for name in findings.names:
            entry = findings.of(name).get(task)
            found = None if entry is None else valley(entry, metric)
            if found is not None:
                dots = tuple(Dot(x=rate, y=metric.points * score) for rate, score in found.points)
                traces.append(Trace(label=name, dots=dots, style=styles[name]))
        if traces:
            title = f"{task}: {metric_name(metric.name)} against the learning rate"
            plane = Plane(title=title, traces=tuple(traces), across="learning rate", shown=lambda value: f"{value:.0e}", joined=True)
            drawn.append(draw_plane(plane, f"rates-{index}"))
    return drawn


def _valleys(findings: Findings) -> Table:
    rows = []
    for name in findings.names:
        cells = []
        for task, metric in findings.metrics.items():
            entry = findings.of(name).get(task)
            found = None if entry is None else valley(entry, metric)
            cells.append(NOTHING if found is None else f"factor {found.width:.3g}{' or more' if found.ends else ''}, best {found.best:.1e}")
        rows.append((Cell(text=name), *map(_cell, cells)))
    columns = (("Contestant", False), *((task, True) for task in findings.metrics))
    return Table(
        key="valleys",
        caption="Width of the valley: largest over smallest rate within a point of the best",
        columns=columns,
        rows=tuple(rows),
    )


def _costs(findings: Findings) -> Table:
    rows = tuple(
        (
            Cell(text=entry.name),
            Cell(text=entry.task),
            Cell(text=_mean(entry.seconds, duration)),
            Cell(text=duration(entry.search_seconds) if entry.trials else NOTHING),
            Cell(text=_mean(entry.memory, lambda value: size(round(value)))),
            Cell(text=_mean(entry.start_parameters, lambda value: brief_count(round(value)))),
        )
        for entry in findings.entries
    )
    columns = (
        ("Contestant", False),
        ("Task", False),
        ("Training", True),
        ("Search, all trials", True),
        ("Memory at most", True),
        ("Parameters at the start", True),
    )
    tall = len(rows) > 24
    return Table(
        key="costs-table", caption="Means over seeds; evaluations are left out of times", columns=columns, rows=tuple(rows), tall=tall
    )
