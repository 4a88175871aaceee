"""Points in a plane whose horizontal axis is logarithmic: scores against sizes or learning rates, with what is known of their error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from paring.report.axes import beside, log_ticks, ruled, vertical_axis, write
from paring.report.curves import Drawn, dashes
from paring.report.drawing import DASHES, SERIES, canvas, ink, themed
from paring.report.words import number, shorten

_WIDTH, _HEIGHT = 360.0, 240.0
_MARKS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"), ("X", "✖"), ("*", "★"))
"""As they are drawn, and as the legend writes them."""


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A point.

    Attributes:
        x: above 0.
        y: its height.
        low, high: ends of its interval; ``None`` where there is none.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Points of one name.

    Attributes:
        label: the name.
        dots: in the order of their place.
        style: number of its colour, dashes and marks.
    """

    label: str
    dots: tuple[Dot, ...]
    style: int


@dataclass(frozen=True, kw_only=True)
class Plane:
    """What is drawn.

    Attributes:
        title: its heading.
        traces: at least one, each with at least one point.
        across: what the horizontal axis shows, in a word.
        shown: a value of that axis as text.
        room: points that are not drawn, but that the axes have room for: planes with the same room can be laid side by side.
    """

    title: str
    traces: tuple[Trace, ...]
    across: str
    shown: Callable[[float], str]
    room: tuple[Dot, ...] = ()


def draw_plane(plane: Plane, key: str) -> Drawn:
    """Draw it.

    Args:
        plane: what.
        key: unique on the page.
    """
    dots = [*(dot for trace in plane.traces for dot in trace.dots), *plane.room]
    heights = [height for dot in dots for height in (dot.y, dot.low, dot.high) if height is not None]
    vertical = vertical_axis(heights)
    first, last = min(dot.x for dot in dots), max(dot.x for dot in dots)
    margin = (last / first) ** 0.05 if last > first else 2.0
    with canvas(_WIDTH, _HEIGHT) as figure:
        axes = beside(figure, vertical, _WIDTH, _HEIGHT, below=34.0, right=20.0)
        axes.set_xscale("log")
        axes.set_xlim(first / margin, last * margin)
        ruled(axes, vertical, log_ticks(first, last, plane.shown, axes.bbox.width), _WIDTH)
        write(axes, (1, 0), (0, -20), plane.across, axes.transAxes, "right", "top")
        for trace in plane.traces:
            _trace(axes, trace)
        svg = themed(figure, key=key, title=plane.title, description=_described(plane))
    legend = tuple(
        (f"{_MARKS[trace.style % len(_MARKS)][1]} {trace.label}", "", trace.style % SERIES + 1, dashes(trace.style))
        for trace in plane.traces
    )
    return Drawn(title=plane.title, svg=svg, summary="", legend=legend)


def _trace(axes: Axes, trace: Trace) -> None:
    colour, pattern = ink(f"series-{trace.style % SERIES + 1}"), DASHES[trace.style % len(DASHES)]
    for dot in trace.dots:
        if dot.low is not None and dot.high is not None:
            axes.plot([dot.x, dot.x], [dot.low, dot.high], color=colour, linewidth=1.5, clip_on=False)
    axes.plot(
        [dot.x for dot in trace.dots],
        [dot.y for dot in trace.dots],
        color=colour,
        linewidth=1.75,
        linestyle=(0, pattern) if pattern else "-",
        marker=_MARKS[trace.style % len(_MARKS)][0],
        markersize=5.5,
        markeredgewidth=0,
        clip_on=False,
    )


def _described(plane: Plane) -> str:
    """The plane in words: each trace with its points."""
    said = []
    for trace in plane.traces:
        dots = (
            f"{number(dot.y)} at {plane.shown(dot.x)}"
            + (f" ({number(dot.low)} to {number(dot.high)})" if dot.low is not None and dot.high is not None else "")
            for dot in trace.dots
        )
        said.append(f"{shorten(trace.label, 60)}: {', '.join(dots)}.")
    return " ".join(said)


def draw_ranks(means: dict[str, float], difference: float | None, groups: tuple[tuple[str, ...], ...], key: str) -> Drawn:
    """The critical-difference diagram: names by their mean rank, the best on the left, and bars over those that are not told apart.

    Args:
        means: mean rank of each name.
        difference: the critical difference, drawn as a bar of its length; ``None`` draws none.
        groups: names that lie within it of each other.
        key: unique on the page.
    """
    order = sorted(means, key=lambda name: (means[name], name))
    half = math.ceil(len(order) / 2)
    width, height = 720.0, 92.0 + 14 * len(groups) + 20 * half
    low, high = 1, max(2, len(order))
    with canvas(width, height) as figure:
        axes = figure.add_axes((0.3, 0, 0.4, 1))
        axes.set_axis_off()
        axes.set_xlim(low, high)
        axes.set_ylim(height, 0)
        axis = 48.0
        axes.plot([low, high], [axis, axis], color=ink("muted"), linewidth=1.25, clip_on=False)
        ticks = MaxNLocator(8, steps=[1, 2, 5, 10], integer=True).tick_values(low, high)
        for rank in (low, *(int(tick) for tick in ticks if low < tick <= high)):
            axes.plot([rank, rank], [axis - 5, axis], color=ink("muted"), linewidth=1.25, clip_on=False)
            write(axes, (rank, axis), (0, 13), str(rank), axes.transData, "center", "center_baseline")
        if difference is not None:
            end = min(low + difference, high)
            axes.plot([low, end], [16, 16], color=ink("ink"), linewidth=2, clip_on=False)
            cut = ", longer than the axis" if low + difference > high else ""
            write(axes, (low, 16), (-6, 0), f"critical difference {difference:.2f}{cut}", axes.transData, "right", "center_baseline")
        for row, group in enumerate(groups):
            ends = [means[group[0]] - 0.02 * (high - low), means[group[-1]] + 0.02 * (high - low)]
            axes.plot(ends, [axis + 12 + 12 * row] * 2, color=ink("series-1"), linewidth=4, clip_on=False, solid_capstyle="round")
        below = axis + 24 + 14 * len(groups)
        for place, name in enumerate(order):
            on_left = place < half
            row = place if on_left else len(order) - 1 - place
            height_of = below + 20 * row
            side = low if on_left else high
            axes.plot([means[name], means[name], side], [axis, height_of, height_of], color=ink("muted"), linewidth=1, clip_on=False)
            text = f"{shorten(name, 24)} {means[name]:.2f}" if on_left else f"{means[name]:.2f} {shorten(name, 24)}"
            write(
                axes, (side, height_of), (-6 if on_left else 6, 0), text, axes.transData, "right" if on_left else "left", "center_baseline"
            )
        said = ", ".join(f"{name} {means[name]:.2f}" for name in order)
        alike = "".join(f" Not told apart: {', '.join(group)}." for group in groups)
        title = "Mean ranks over tasks"
        svg = themed(figure, key=key, title=title, description=f"{said}.{alike}")
    return Drawn(title=title, svg=svg, summary="", legend=())
