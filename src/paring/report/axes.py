"""The axes of figures: where they end, their ticks, and labels that are short, true and lie within the drawing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from matplotlib.transforms import Transform

from paring.report.drawing import ink
from paring.report.words import brief_count

_Across = Literal["left", "center", "right"]
_Up = Literal["top", "center", "center_baseline"]

_NOTHING = 1e-290  # values below are drawn as 0
_FLAT = 1e-9  # values that differ by less than this share of their size are one level
_NICE = [1, 2, 2.5, 5, 10]
_DIGIT = 7.0  # pixels that a character of a tick's label takes, with room
_LABEL = 10  # longer labels share an offset


@dataclass(frozen=True, kw_only=True)
class Vertical:
    """A vertical axis.

    Attributes:
        bottom, ceiling: its ends.
        ticks, labels: its ticks, and what stands beside them.
        offset: what is to be added to each label; empty for nothing.
    """

    bottom: float
    ceiling: float
    ticks: tuple[float, ...]
    labels: tuple[str, ...]
    offset: str


def vertical_axis(values: Sequence[float], *, from_zero: bool = False) -> Vertical:
    """The axis that has room for finite values; without any it has no ticks."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    low = min(low, 0.0) if from_zero else low
    if max(abs(low), abs(high)) < _NOTHING:
        bottom, ceiling = 0.0, 1.0
    else:
        spread = high - low
        pad = 0.06 * spread if spread > _FLAT * max(abs(low), abs(high)) else 0.1 * max(abs(low), abs(high))
        bottom, ceiling = (low if from_zero and low == 0 else low - pad), high + pad
    ticks = [tick for tick in MaxNLocator(4, steps=_NICE).tick_values(bottom, ceiling) if bottom <= tick <= ceiling] if values else []
    labels, offset = _axis_labels(ticks)
    return Vertical(bottom=bottom, ceiling=ceiling, ticks=tuple(ticks), labels=tuple(labels), offset=offset)


def beside(figure: Figure, vertical: Vertical, width: float, height: float, *, below: float = 30.0, right: float = 14.0) -> Axes:
    """Axes with room for a vertical axis to their left, and for so many pixels below and to their right."""
    left = max(50.0, 8 + _DIGIT * max((len(label) for label in vertical.labels), default=0))
    top = 24 if vertical.offset else 12
    axes = figure.add_axes((left / width, below / height, (width - left - right) / width, (height - below - top) / height))
    axes.set_axis_off()
    return axes


def ruled(axes: Axes, vertical: Vertical, ticks: Sequence[tuple[float, str]], width: float) -> None:
    """Draw both axes, the horizontal one with these ticks, in a drawing so wide; the horizontal limits are set already."""
    axes.set_ylim(vertical.bottom, vertical.ceiling)
    # Lines and words in place of matplotlib's axes: these take most of the time and bring nothing else.
    for tick, label in zip(vertical.ticks, vertical.labels, strict=True):
        axes.axhline(tick, color=ink("rule"), linewidth=1, zorder=1)
        write(axes, (0, tick), (-6, 0), label, axes.get_yaxis_transform(), "right", "center_baseline")
    if vertical.offset:
        write(axes, (0, 1), (0, 8), f"add {vertical.offset}", axes.transAxes, "left", "center_baseline")
    for tick, label in ticks:
        # What would stand out of the drawing on the right is moved in.
        over = axes.transData.transform((tick, 0.0))[0] + _DIGIT * len(label) / 2 - width
        write(axes, (tick, 0), (min(0.0, -over), -6), label, axes.get_xaxis_transform(), "center", "top")
    axes.axhline(vertical.bottom, color=ink("muted"), linewidth=1, zorder=1, clip_on=False)


def step_ticks(first: int, last: int, width: float) -> list[tuple[float, str]]:
    """Ticks over the steps with their labels: five, or fewer where these would touch."""
    for most in (5, 4, 3, 2):
        ticks = [tick for tick in MaxNLocator(most, steps=_NICE, integer=True).tick_values(first, last) if first <= tick <= last]
        labels = tick_labels(ticks)
        if _DIGIT * sum(len(label) + 1 for label in labels) <= width:
            break
    return list(zip(ticks, labels, strict=True))


def log_ticks(first: float, last: float, shown: Callable[[float], str], width: float) -> list[tuple[float, str]]:
    """Ticks over a logarithmic axis with their labels: at 1, 2 and 5 times powers of ten, or fewer where these would touch."""
    for subs in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        ticks = [float(tick) for tick in LogLocator(subs=subs, numticks=20).tick_values(first, last) if first <= tick <= last]
        if ticks and _DIGIT * sum(len(shown(tick)) + 2 for tick in ticks) <= width:
            return [(tick, shown(tick)) for tick in ticks]
    # A span between two powers of ten has its own ends, and so has one of too many.
    return [(tick, shown(tick)) for tick in dict.fromkeys((float(first), float(last)))]


def brief(size: float) -> str:
    """A size beside an axis: ``80k``, ``1.5 M``."""
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


def _axis_labels(ticks: Sequence[float]) -> tuple[list[str], str]:
    """Labels that fit beside an axis, and what is to be added to each of them; empty where they say it all."""
    labels = tick_labels(ticks)
    if len(ticks) < 2 or max(map(len, labels)) <= _LABEL:
        return labels, ""
    unit = 10.0 ** math.ceil(math.log10(ticks[-1] - ticks[0]) - 1e-9)
    base = math.floor(ticks[0] / unit + 1e-6) * unit
    decimals = max(0, -round(math.log10(unit)))
    return tick_labels([tick - base for tick in ticks]), f"{base:,.{decimals}f}" if abs(base) < 1e13 else _power(base, 0.01 * unit)


def tick_labels(ticks: Sequence[float]) -> list[str]:
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
