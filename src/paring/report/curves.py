"""Small charts drawn: curves, axes, ticks and what they say in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator
from matplotlib.transforms import Transform

from paring.report.charts import Chart
from paring.report.drawing import DASHES, SERIES, canvas, ink, themed
from paring.report.series import Series
from paring.report.words import brief_count, count, number, sentence_case, shorten

_Across = Literal["left", "center", "right"]
_Up = Literal["top", "center", "center_baseline"]

_WIDTH, _HEIGHT = 360.0, 220.0
_FAR = 1e300  # values beyond are drawn there
_NOTHING = 1e-290  # values below are drawn as 0
_FLAT = 1e-9  # values that differ by less than this share of their size are one level
NICE = [1, 2, 2.5, 5, 10]
DIGIT = 7.0  # pixels that a character of a tick's label takes, with room
_LABEL = 10  # longer labels share an offset
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
        left = max(50.0, 8 + DIGIT * max((len(label) for label in vertical.labels), default=0))
        top = 24 if vertical.offset else 12
        axes = figure.add_axes((left / _WIDTH, 30 / _HEIGHT, (_WIDTH - left - 14) / _WIDTH, (_HEIGHT - 30 - top) / _HEIGHT))
        axes.set_axis_off()
        for curve in chart.curves:
            _curve(axes, curve)
        _frame(axes, chart, vertical)
        svg = themed(figure, key=key, title=chart.title, description=describe(chart))
    single = len(chart.curves) == 1
    # One curve that is called as its chart needs no legend.
    named = [] if single and chart.curves[0].label == chart.title else chart.curves
    entries = [(curve.label, "" if single else _ends(curve), _colour(curve), _dashes(curve)) for curve in named]
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


def _dashes(curve: Series) -> str:
    return " ".join(f"{length:g}" for length in DASHES[curve.style % len(DASHES)])


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


@dataclass(frozen=True, kw_only=True)
class _Vertical:
    """The vertical axis: its ends, its ticks with their labels, and what is to be added to each label (empty: nothing)."""

    bottom: float
    ceiling: float
    ticks: tuple[float, ...]
    labels: tuple[str, ...]
    offset: str


def _vertical(chart: Chart) -> _Vertical:
    values = [_near(value) for curve in chart.curves for _, value in curve.finite]
    if chart.start is not None:
        values.append(chart.start)
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    low = min(low, 0.0) if chart.from_zero else low
    if max(abs(low), abs(high)) < _NOTHING:
        bottom, ceiling = 0.0, 1.0
    else:
        spread = high - low
        pad = 0.06 * spread if spread > _FLAT * max(abs(low), abs(high)) else 0.1 * max(abs(low), abs(high))
        bottom, ceiling = (low if chart.from_zero and low == 0 else low - pad), high + pad
    ticks = [tick for tick in MaxNLocator(4, steps=NICE).tick_values(bottom, ceiling) if bottom <= tick <= ceiling] if values else []
    labels, offset = axis_labels(ticks)
    return _Vertical(bottom=bottom, ceiling=ceiling, ticks=tuple(ticks), labels=tuple(labels), offset=offset)


def _frame(axes: Axes, chart: Chart, vertical: _Vertical) -> None:
    if chart.start is not None:
        axes.axhline(chart.start, color=ink("muted"), linewidth=1, linestyle=(0, (2, 2)))
    axes.set_ylim(vertical.bottom, vertical.ceiling)
    steps = [step for curve in chart.curves for step in curve.steps]
    first, last = min(steps), max(steps)
    if chart.across == "parameters":
        axes.set_xscale("log")
        margin = (last / first) ** 0.02 if last > first else 2.0
        axes.set_xlim(first / margin, last * margin)
    else:
        margin = 0.02 * (last - first) or 1.0
        axes.set_xlim(first - margin, last + margin)
    # Lines and words in place of matplotlib's axes: these take most of the time and bring nothing else.
    for tick, label in zip(vertical.ticks, vertical.labels, strict=True):
        axes.axhline(tick, color=ink("rule"), linewidth=1, zorder=1)
        write(axes, (0, tick), (-6, 0), label, axes.get_yaxis_transform(), "right", "center_baseline")
    if vertical.offset:
        write(axes, (0, 1), (0, 8), f"add {vertical.offset}", axes.transAxes, "left", "center_baseline")
    ticks = _sizes(first, last, axes.bbox.width) if chart.across == "parameters" else _steps(first, last, axes.bbox.width)
    for tick, label in ticks:
        # What would stand out of the drawing on the right is moved in.
        over = axes.transData.transform((tick, 0.0))[0] + DIGIT * len(label) / 2 - _WIDTH
        write(axes, (tick, 0), (min(0.0, -over), -6), label, axes.get_xaxis_transform(), "center", "top")
    axes.axhline(vertical.bottom, color=ink("muted"), linewidth=1, zorder=1, clip_on=False)
    if chart.across == "step":
        write(axes, (0, 0), (-6, -6), "step", axes.transAxes, "right", "top")
    if not any(curve.finite for curve in chart.curves) and chart.start is None:
        write(axes, (0.5, 0.5), (0, 0), "no finite value", axes.transAxes, "center", "center")


def _steps(first: int, last: int, width: float) -> list[tuple[float, str]]:
    """Ticks over the steps with their labels: five, or fewer where these would touch."""
    for most in (5, 4, 3, 2):
        ticks = [tick for tick in MaxNLocator(most, steps=NICE, integer=True).tick_values(first, last) if first <= tick <= last]
        labels = _tick_labels(ticks)
        if DIGIT * sum(len(label) + 1 for label in labels) <= width:
            break
    return list(zip(ticks, labels, strict=True))


def _sizes(first: int, last: int, width: float) -> list[tuple[float, str]]:
    """Ticks over a logarithmic axis with their labels: at 1, 2 and 5 times powers of ten, or fewer where these would touch."""
    ticks: list[float] = []
    for subs in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        ticks = [tick for tick in LogLocator(subs=subs, numticks=20).tick_values(first, last) if first <= tick <= last]
        if DIGIT * sum(len(label) + 2 for label in map(_brief, ticks)) <= width:
            break
    # A span between two powers of ten has its own ends.
    ticks = ticks or [float(first), float(last)][: 1 if first == last else 2]
    return [(tick, _brief(tick)) for tick in ticks]


def _brief(size: float) -> str:
    return f"{size / 1000:g}k" if 1000 <= size < 10**6 else brief_count(round(size))


def write(
    axes: Axes, at: tuple[float, float], offset: tuple[float, float], text: str, transform: Transform, across: _Across, up: _Up
) -> None:
    """A word or number beside the data, so many pixels from a place."""
    axes.annotate(
        text,
        at,
        offset,
        xycoords=transform,
        textcoords="offset pixels",
        color=ink("muted"),
        fontsize=12,
        ha=across,
        va=up,
        annotation_clip=False,
    )


def axis_labels(ticks: Sequence[float]) -> tuple[list[str], str]:
    """Labels that fit beside an axis, and what is to be added to each of them; empty where they say it all."""
    labels = _tick_labels(ticks)
    if len(ticks) < 2 or max(map(len, labels)) <= _LABEL:
        return labels, ""
    unit = 10.0 ** math.ceil(math.log10(ticks[-1] - ticks[0]) - 1e-9)
    base = math.floor(ticks[0] / unit + 1e-6) * unit
    decimals = max(0, -round(math.log10(unit)))
    return _tick_labels([tick - base for tick in ticks]), f"{base:,.{decimals}f}" if abs(base) < 1e13 else _power(base, 0.01 * unit)


def _tick_labels(ticks: Sequence[float]) -> list[str]:
    """Labels in one unit, with as many decimals as it takes for each to be true."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    if largest == 0:
        return ["0"] * len(ticks)
    apart = min((abs(second - first) for first, second in pairwise(ticks) if first != second), default=0.01 * largest)
    close = 0.01 * apart
    if largest < 1e-3 or largest >= 1e13:
        return [_power(tick, close) for tick in ticks]
    scale, unit = next(((scale, unit) for scale, unit in ((1e9, "B"), (1e6, "M"), (1e4, "k")) if largest >= scale), (1.0, ""))
    scale = 1e3 if unit == "k" else scale
    true = (count for count in range(16) if all(abs(round(tick / scale, count) - tick / scale) <= close / scale for tick in ticks))
    decimals = next(true, 16)
    return ["0" if abs(tick) <= close else f"{tick / scale:.{decimals}f}{unit}" for tick in ticks]


def _power(value: float, close: float) -> str:
    """A number as ``2.5e-6``, with the digits that bring it as close as that."""
    if abs(value) <= close:
        return "0"
    text = next((text for text in (f"{value:.{digits}e}" for digits in range(17)) if abs(float(text) - value) <= close), f"{value:.16e}")
    mantissa, exponent = text.split("e")
    return f"{mantissa}e{int(exponent)}"
