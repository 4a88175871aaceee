"""The logged history as series over steps: one point a step, in the order of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from paring.core.records import Point
from paring.report.words import as_float

_COSTS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")

# What trainers log about themselves; no curve and no headline, but kept in the tables.
BOOKKEEPING = frozenset(
    {
        "epoch",
        "total_flos",
        "train_loss",
        *(f"{part}{name}" for part in ("", "eval_", "test_", "train_") for name in ("num_tokens", "num_input_tokens_seen")),
        *(f"{part}_{cost}" for part in ("eval", "test", "train") for cost in _COSTS),
    }
)

_FIRST = ("live_parameters", "lambda", "loss", "eval_loss")
_LAST = ("live_ranks", "sparsity", "learning_rate")


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve.

    Attributes:
        label: what the legend calls it.
        steps: rising, without repetition.
        values: as logged; NaN and infinities stay.
        style: number of the colour and dash pattern, from 0.
    """

    label: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    style: int = 0

    @property
    def finite(self) -> list[tuple[int, float]]:
        """The points that can be drawn."""
        return [(step, value) for step, value in zip(self.steps, self.values, strict=True) if math.isfinite(value)]

    @property
    def broken(self) -> list[int]:
        """The steps whose value is NaN or infinite."""
        return [step for step, value in zip(self.steps, self.values, strict=True) if not math.isfinite(value)]


def merged(history: Sequence[Point]) -> list[Point]:
    """One point per step, steps rising; of a value that was logged twice at a step (a resumed run) the later one counts."""
    steps: dict[int, dict[str, float]] = {}
    for point in history:
        steps.setdefault(point.step, {}).update(point.values)
    return [Point(step=step, values=steps[step]) for step in sorted(steps)]


def series(history: Sequence[Point], key: str, *, label: str, style: int = 0) -> Series:
    """The curve of one key over a history that :func:`merged` has put in order."""
    points = [(point.step, as_float(point.values[key])) for point in history if key in point.values]
    return Series(label=label, steps=tuple(step for step, _ in points), values=tuple(value for _, value in points), style=style)


def keys(history: Sequence[Point]) -> list[str]:
    """The logged keys: parameters, lambda and loss first, then metrics, then the rest; each group by name."""
    names = {key for point in history for key in point.values}

    def rank(key: str) -> tuple[int, int, str]:
        if key in _FIRST:
            return (0, _FIRST.index(key), key)
        if key in _LAST:
            return (2, _LAST.index(key), key)
        if key in BOOKKEEPING:
            return (4, 0, key)
        return (1 if key.startswith("eval_") else 3, 0, key)

    return sorted(names, key=rank)


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most ``most`` points, evenly spaced, always with the first and the last."""
    if len(points) <= most:
        return list(points)
    return [points[round(index * (len(points) - 1) / (most - 1))] for index in range(most)]
