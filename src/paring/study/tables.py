"""The tables of a study's page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from paring.report.tables import Cell, Table
from paring.report.words import NOTHING, brief_count, count, duration, metric_name, number, sentence_case, size
from paring.study.records import Entry, Findings, Metric
from paring.study.shapes import frontier, valley
from paring.study.statistics import Best, Interval, best, compare, holm, spread

_TALL = 24
_NAMED = 3


def listing(names: Sequence[str], joint: str = "and") -> str:
    """Names in a sentence, the first few of many.

    >>> listing(["a"]), listing(["a", "b"]), listing(["a", "b", "c", "d", "e"], "or")
    ('a', 'a and b', 'a, b, c or 2 more')
    """
    said = [*names[:_NAMED], *([f"{count(len(names) - _NAMED)} more"] if len(names) > _NAMED else [])]
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} {joint} {said[-1]}"


def tasks_table(findings: Findings) -> Table:
    """What each task is scored in."""
    rows = [
        _texts(
            task,
            metric_name(metric.name),
            "larger" if metric.larger_is_better else "smaller",
            f"{number(1 / metric.points)} of it" if metric.points else NOTHING,
        )
        for task, metric in findings.metrics.items()
    ]
    columns = (("Task", False), ("Metric", False), ("Better", False), ("A point is", False))
    return _table("tasks", "Tasks", columns, rows)


def failures_table(findings: Findings) -> Table | None:
    """Every run that failed, with what went wrong; ``None`` if none did."""
    rows = [_texts(entry.name, entry.task, run, error) for entry in findings.entries for run, error in entry.errors.items()]
    columns = (("Contestant", False), ("Task", False), ("Run", False), ("What went wrong", False))
    return _table("failures", "Runs that failed", columns, rows) if rows else None


def edges_table(findings: Findings) -> Table | None:
    """Every chosen value that lies at an end of what was tried; ``None`` if none does."""
    rows = [
        _texts(entry.name, entry.task, metric_name(name), number((entry.chosen or {})[name]), _tried(entry, name))
        for entry in findings.entries
        for name in entry.edges
    ]
    columns = (("Contestant", False), ("Task", False), ("Setting", False), ("Chosen", True), ("Tried", True))
    return _table("edges", "Chosen at the edge of what was tried", columns, rows) if rows else None


def _tried(entry: Entry, name: str) -> str:
    values = [trial.values[name] for trial in entry.trials if name in trial.values]
    return f"{number(min(values))} to {number(max(values))}" if values else NOTHING


def results_table(findings: Findings, task: str, key: str) -> Table:
    """The scores on a task with what was chosen, and which names are told apart from the best mean."""
    metric, top, digits = findings.metrics[task], best(findings, task), digits_of(findings, task)
    rows = []
    for name in findings.names:
        entry = findings.of(name).get(task)
        if entry is None:
            continue
        scores = [metric.points * score for score in entry.scores if score is not None]
        rows.append(
            _texts(
                name,
                _spread(spread(scores), digits) if scores else NOTHING,
                f"{len(scores)} of {len(entry.scores)}",
                _apart(name, top) if scores else "failed",
                NOTHING if entry.tuned is None else f"{metric.points * entry.tuned:.{digits}f}",
                _chosen(entry),
                _mean(entry.parameters, lambda value: brief_count(round(value))),
                _mean(entry.file_bytes, lambda value: size(round(value))),
            )
        )
    columns = (
        ("Contestant", False),
        (f"{sentence_case(metric_name(metric.name))} [95%]", True),
        ("Seeds", True),
        ("The highest mean" if metric.larger_is_better else "The lowest mean", False),
        ("On the rows chosen by", True),
        ("Chosen", False),
        ("Parameters", True),
        ("File", True),
    )
    unit = ", in percent" if metric.share else ""
    better = "larger" if metric.larger_is_better else "smaller"
    return _table(key, f"{task}: {metric_name(metric.name)}{unit}, {better} is better", columns, rows)


def _apart(name: str, top: Best | None) -> str:
    if top is None or name not in {top.name, *top.alike, *top.apart}:
        return "seeds are missing"
    if name == top.name:
        return f"it is this one, or {listing(sorted(top.alike), 'or')}" if top.alike else "it is this one"
    return "not told apart" if name in top.alike else "told apart"


def _chosen(entry: Entry) -> str:
    if entry.chosen is None:
        return "nothing"
    said = (f"{metric_name(name)} {number(value)}{' (edge)' if name in entry.edges else ''}" for name, value in entry.chosen.items())
    return ", ".join(said) or "as given"


def differences_table(findings: Findings, reference: str) -> Table | None:
    """Every other name against the reference, task by task and over all; ``None`` if there is no other."""
    found = {name: compare(findings, name, reference) for name in findings.names if name != reference}
    if not found:
        return None
    corrected = holm({name: one.p for name, one in found.items() if one.p is not None})
    digits = {task: digits_of(findings, task) for task in findings.metrics}
    rows = [
        _texts(
            name,
            *(signed(one.tasks.get(task), digits[task]) for task in findings.metrics),
            signed(one.overall, max(digits.values())),
            NOTHING if one.p is None else f"{one.p:.2g}",
            f"{corrected[name]:.2g}" if name in corrected else NOTHING,
            "; ".join(one.missing),
        )
        for name, one in found.items()
    ]
    columns = (
        ("Contestant", False),
        *((task, True) for task in findings.metrics),
        ("Mean over tasks", True),
        ("p, by sign flips", True),
        ("The same, by Holm", True),
        ("Left out", False),
    )
    return _table("differences-table", f"Points above {reference} [95%]", columns, rows)


def dominated_table(findings: Findings) -> Table:
    """Which names another one beats in size and mean score at once; of those with every seed."""
    tasks = {task: {place.name: place.dominated_by for place in frontier(findings, task)} for task in findings.metrics}

    def said(name: str, places: Mapping[str, str | None]) -> str:
        return NOTHING if name not in places else "no" if places[name] is None else f"by {places[name]}"

    rows = [_texts(name, *(said(name, places) for places in tasks.values())) for name in findings.names]
    columns = (("Contestant", False), *((task, False) for task in tasks))
    return _table("dominated", "Is another at most as large and at least as good?", columns, rows)


def valleys_table(findings: Findings) -> Table:
    """How wide the valley of the learning rate is, and where its best lies."""
    rows = []
    for name in findings.names:
        cells = []
        for task, metric in findings.metrics.items():
            entry = findings.of(name).get(task)
            found = None if entry is None else valley(entry, metric)
            if found is None:
                cells.append(NOTHING)
                continue
            at = " (edge)" if found.edge else ""
            cells.append(f"factor {found.width:.3g}{' or more' if found.ends else ''}, best {number(found.best)}{at}")
        rows.append(_texts(name, *cells))
    columns = (("Contestant", False), *((task, True) for task in findings.metrics))
    return _table(
        "valleys",
        "Width of the valley: largest over smallest rate within a point of the best, or 1% of it if it is no share",
        columns,
        rows,
    )


def costs_table(findings: Findings) -> Table:
    """Time and memory of each name on each task."""
    rows = [
        _texts(
            entry.name,
            entry.task,
            str(len(entry.trials)),
            _mean(entry.setup_seconds, duration),
            _mean(entry.seconds, duration),
            _mean(entry.cpu_seconds, duration),
            duration(entry.search_seconds) if entry.trials else NOTHING,
            size(max(known)) if (known := [value for value in entry.memory if value is not None]) else NOTHING,
            _mean(entry.start_parameters, lambda value: brief_count(round(value))),
        )
        for entry in findings.entries
    ]
    columns = (
        ("Contestant", False),
        ("Task", False),
        ("Trials", True),
        ("Making the adapter, mean over seeds", True),
        ("Training, mean over seeds", True),
        ("Processor time, mean over seeds", True),
        ("Search, all trials", True),
        ("Memory, the most of all seeds", True),
        ("Parameters at the start", True),
    )
    return _table("costs-table", "Trials, time and memory; loading and evaluations are left out of times", columns, rows)


def _table(key: str, caption: str, columns: tuple[tuple[str, bool], ...], rows: list[tuple[Cell, ...]]) -> Table:
    return Table(key=key, caption=caption, columns=columns, rows=tuple(rows), tall=len(rows) > _TALL)


def _texts(*texts: str) -> tuple[Cell, ...]:
    return tuple(Cell(text=text) for text in texts)


def digits_of(findings: Findings, task: str) -> int:
    """Decimals of a task's scores in points: two, or as many as it takes for four digits that say something."""
    metric: Metric = findings.metrics[task]
    scores = [abs(score) * metric.points for entry in findings.entries if entry.task == task for score in entry.scores if score]
    return max(2, 3 - math.floor(math.log10(max(scores)))) if scores else 2


def _mean(values: Sequence[float | None], shown: Callable[[float], str]) -> str:
    known = [value for value in values if value is not None]
    return shown(float(np.mean(known))) if known else NOTHING


def _spread(interval: Interval, digits: int) -> str:
    between = "" if interval.low is None or interval.high is None else f" [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
    return f"{interval.mean:.{digits}f}{between}"


def signed(interval: Interval | None, digits: int) -> str:
    """A difference with its sign, and its interval."""
    if interval is None:
        return NOTHING
    between = "" if interval.low is None or interval.high is None else f" [{interval.low:+.{digits}f}, {interval.high:+.{digits}f}]"
    return f"{interval.mean:+.{digits}f}{between}"
