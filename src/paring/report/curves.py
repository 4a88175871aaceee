"""Small charts drawn: curves, axes, ticks and what they say in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes

from paring.report.axes import Vertical, beside, brief, log_ticks, ruled, step_ticks, vertical_axis, write
from paring.report.charts import Chart
from paring.report.drawing import DASHES, SERIES, canvas, ink, themed
from paring.report.series import Series
from paring.report.words import count, number, sentence_case, shorten

_WIDTH, _HEIGHT = 360.0, 220.0
_FAR = 1e300  # values beyond are drawn there
_MARKED = 40  # up to so many points, each is marked
_DENSE = 400  # with more points the line is thinner


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A chart as it goes on the page.

    Attributes:
        title: its heading.
        svg: the drawing.
        summary: the values of a single curve in words, else empty.
        legend: (label, values in words, colour number, dash pattern) for each line that needs one.
    """

    title: str
    svg: Markup
    summary: str
    legend: tuple[tuple[str, str, int, str], ...]


def summarise(curve: Series) -> str:
    """First and last value and the extremes, in words.

    >>> summarise(Series(label="loss", steps=(1, 2, 3), values=(2.0, 0.5, 0.75)))
    '2 → 0.75, lowest 0.5'
    """
    finite = curve.finite
    if not finite:
        return "no finite value"
    values = [value for _, value in finite]
    text = _ends(curve)
    if min(values) < min(values[0], values[-1]):
        text += f", lowest {number(min(values))}"
    if max(values) > max(values[0], values[-1]):
        text += f", highest {number(max(values))}"
    if curve.broken:
        text += f"; {count(len(curve.broken))} not finite, first at step {count(curve.broken[0])}"
    return text


def _ends(curve: Series) -> str:
    values = [value for _, value in curve.finite]
    if not values:
        return "no finite value"
    return number(values[0]) if len(values) == 1 else f"{number(values[0])} → {number(values[-1])}"


def describe(chart: Chart) -> str:
    """The chart in words: each curve with its steps and values."""
    sentences = []
    for curve in chart.curves:
        one, many = ("step ", "steps ") if chart.across == "step" else ("parameters ", "parameters ")
        span = f"{many}{count(curve.steps[0])} to {count(curve.steps[-1])}" if len(curve.steps) > 1 else f"{one}{count(curve.steps[0])}"
        sentences.append(f"{shorten(curve.label, 80)}, {span}: {summarise(curve).replace('→', 'to')}.")
    if chart.start is not None:
        sentences.append(f"{sentence_case(chart.level)}: {number(chart.start)}.")
    return " ".join(sentences)


def draw(chart: Chart, key: str) -> Drawn:
    """Draw a chart.

    Args:
        chart: what to show; every curve has at least one point.
        key: unique on the page.
    """
    with canvas(_WIDTH, _HEIGHT) as figure:
        vertical = _vertical(chart)
        axes = beside(figure, vertical, _WIDTH, _HEIGHT)
        for curve in chart.curves:
            _curve(axes, curve)
        _frame(axes, chart, vertical)
        svg = themed(figure, key=key, title=chart.title, description=describe(chart))
    single = len(chart.curves) == 1
    # One curve that is called as its chart needs no legend.
    named = [] if single and chart.curves[0].label == chart.title else chart.curves
    entries = [(curve.label, "" if single else _ends(curve), _colour(curve), dashes(curve.style)) for curve in named]
    if chart.start is not None:
        entries.append((chart.level, number(chart.start), 0, "2 2"))
    return Drawn(
        title=chart.title,
        svg=svg,
        summary=summarise(chart.curves[0]) if single else "",
        legend=tuple(entries),
    )


def _colour(curve: Series) -> int:
    return curve.style % SERIES + 1


def dashes(style: int) -> str:
    """The dash pattern of a number, as SVG has it."""
    return " ".join(f"{length:g}" for length in DASHES[style % len(DASHES)])


def _near(value: float) -> float:
    """The value, held where differences do not overflow."""
    return max(-_FAR, min(_FAR, value))


def _curve(axes: Axes, curve: Series) -> None:
    colour, pattern = ink(f"series-{_colour(curve)}"), DASHES[curve.style % len(DASHES)]
    drawable = [math.isfinite(value) for value in curve.values]
    # A point between two gaps has no line to either side, so it is marked in any case.
    alone = [
        index
        for index, shown in enumerate(drawable)
        if shown and not any(drawable[near] for near in (index - 1, index + 1) if 0 <= near < len(drawable))
    ]
    marks = [index for index, shown in enumerate(drawable) if shown] if len(drawable) <= _MARKED else alone
    values = [_near(value) if shown else math.nan for value, shown in zip(curve.values, drawable, strict=True)]
    axes.plot(
        curve.steps,
        values,
        color=colour,
        linewidth=1.75 if len(values) <= _DENSE else 1.0,
        linestyle=(0, pattern) if pattern else "-",
        marker="o",
        markersize=4.5,
        markeredgewidth=0,
        markevery=marks,
        clip_on=False,
    )
    if curve.broken:
        axes.plot(
            curve.broken,
            [0.0] * len(curve.broken),
            transform=axes.get_xaxis_transform(),
            color=ink("warn"),
            linestyle="none",
            marker="x",
            markersize=5,
            markeredgewidth=1.5,
            clip_on=False,
        )


def _vertical(chart: Chart) -> Vertical:
    values = [_near(value) for curve in chart.curves for _, value in curve.finite]
    if chart.start is not None:
        values.append(chart.start)
    return vertical_axis(values, from_zero=chart.from_zero)


def _frame(axes: Axes, chart: Chart, vertical: Vertical) -> None:
    if chart.start is not None:
        axes.axhline(chart.start, color=ink("muted"), linewidth=1, linestyle=(0, (2, 2)))
    steps = [step for curve in chart.curves for step in curve.steps]
    first, last = min(steps), max(steps)
    if chart.across == "parameters":
        axes.set_xscale("log")
        margin = (last / first) ** 0.02 if last > first else 2.0
        axes.set_xlim(first / margin, last * margin)
    else:
        margin = 0.02 * (last - first) or 1.0
        axes.set_xlim(first - margin, last + margin)
    width = axes.bbox.width
    ruled(axes, vertical, log_ticks(first, last, brief, width) if chart.across == "parameters" else step_ticks(first, last, width), _WIDTH)
    if chart.across == "step":
        write(axes, (0, 0), (-6, -6), "step", axes.transAxes, "right", "top")
    if not any(curve.finite for curve in chart.curves) and chart.start is None:
        write(axes, (0.5, 0.5), (0, 0), "no finite value", axes.transAxes, "center", "center")
