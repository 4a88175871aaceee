"""The figures of a study's page: scores against sizes, and scores of the search against learning rates."""

from __future__ import annotations

from collections.abc import Callable

from paring.report.axes import brief
from paring.report.curves import Drawn
from paring.report.drawing import SERIES
from paring.report.planes import Dot, Plane, Trace, draw_plane
from paring.report.words import metric_name, number
from paring.study.records import Findings
from paring.study.shapes import frontier, valley


def frontiers(findings: Findings) -> list[Drawn]:
    """Of each task, mean score against mean parameters, with intervals; the budgets of a contestant are one trace."""
    drawn = []
    styles = {contestant: index for index, contestant in enumerate(dict.fromkeys(entry.contestant for entry in findings.entries))}
    for index, (task, metric) in enumerate(findings.metrics.items()):
        dots: dict[str, list[Dot]] = {contestant: [] for contestant in styles}
        for place in frontier(findings, task):
            if place.parameters > 0:  # a logarithm has no place for none
                dots[place.contestant].append(Dot(x=place.parameters, y=place.score.mean, low=place.score.low, high=place.score.high))
        traces = [Trace(label=label, dots=tuple(found), style=styles[label]) for label, found in dots.items() if found]
        drawn += _planes(traces, f"{task}: {metric_name(metric.name)} against parameters", "parameters", brief, f"frontier-{index}")
    return drawn


def rates(findings: Findings) -> list[Drawn]:
    """Of each task, the score of the search's finished trials against their learning rate."""
    drawn = []
    for index, (task, metric) in enumerate(findings.metrics.items()):
        traces = []
        for style, name in enumerate(findings.names):
            entry = findings.of(name).get(task)
            found = None if entry is None else valley(entry, metric)
            if found is not None:
                dots = tuple(Dot(x=rate, y=metric.points * score) for rate, score in found.points)
                traces.append(Trace(label=name, dots=dots, style=style))
        drawn += _planes(traces, f"{task}: {metric_name(metric.name)} against the learning rate", "learning rate", number, f"rates-{index}")
    return drawn


def _planes(traces: list[Trace], title: str, across: str, shown: Callable[[float], str], key: str) -> list[Drawn]:
    """As many planes as it takes for no two traces of one to share a colour; all of them have the same axes."""
    groups: dict[int, list[Trace]] = {}
    for trace in traces:
        groups.setdefault(trace.style // SERIES, []).append(trace)
    room = tuple(dot for trace in traces for dot in trace.dots)
    drawn = []
    for part, group in enumerate(groups.values(), 1):
        named = title if len(groups) == 1 else f"{title}, {part} of {len(groups)}"
        drawn.append(draw_plane(Plane(title=named, traces=tuple(group), across=across, shown=shown, room=room), f"{key}-{part}"))
    return drawn
