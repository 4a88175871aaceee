"""The shapes of a study's scores: how narrow the valley of a learning rate is, and which names are worth their size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from paring.study.records import Entry, Findings, Metric, State
from paring.study.statistics import DIGITS, Interval, mean_score, spread

RATE = "learning_rate"
MARGIN = 0.01
"""What still counts as good: so much of a share below the best (a point), or so much of the best score where it is no share."""


@dataclass(frozen=True, kw_only=True)
class Valley:
    """How a score depends on the learning rate.

    Attributes:
        points: learning rate and score of the finished trials, the best of each rate, by rate.
        tried: every rate that was tried, those of trials that did not finish too.
        best: the rate of the best.
        width: the largest rate within ``margin`` of the best score divided by the smallest, of the rates around the best that are all so;
            1 where no neighbour is. It can't be seen wider than the rates that were tried.
        margin: in points.
        ends: whether the smallest or the largest rate that was tried is among them, so that the valley may be wider.
    """

    points: tuple[tuple[float, float], ...]
    tried: tuple[float, ...]
    best: float
    width: float
    margin: float
    ends: bool

    @property
    def edge(self) -> bool:
        """Whether the best is the smallest or the largest rate that was tried, so that a better one may lie beyond."""
        return self.best in (self.tried[0], self.tried[-1])


@dataclass(frozen=True, kw_only=True)
class Place:
    """A name in the plane of size and score.

    Attributes:
        name: of contestant and budget.
        contestant: without the budget.
        parameters: mean over seeds.
        score: over seeds, in points, as the metric has it.
        dominated_by: the best of those that have at most so many parameters and at least so good a mean, and are better in one of the two;
            ``None`` if there is none.
    """

    name: str
    contestant: str
    parameters: float
    score: Interval
    dominated_by: str | None


def valley(entry: Entry, metric: Metric, margin: float | None = None) -> Valley | None:
    """The learning-rate curve of a search; ``None`` where no rate was searched, or no trial came to its end.

    A rate none of whose trials came to its end has no score and bounds the valley: it was cut short since others were better, or failed.

    Args:
        entry: whose trials are looked at.
        metric: what they were scored in.
        margin: in points, how much below the best is still good; ``None`` for :data:`MARGIN`.
    """
    sign = 1.0 if metric.larger_is_better else -1.0
    best: dict[float, float] = {}
    for trial in entry.trials:
        if RATE in trial.values and trial.state is State.FINISHED and trial.score is not None:
            best[trial.values[RATE]] = max(best.get(trial.values[RATE], -math.inf), sign * trial.score)
    if not best:
        return None
    tried = sorted({trial.values[RATE] for trial in entry.trials if RATE in trial.values})
    top = max(sorted(best), key=lambda rate: best[rate])
    low = high = tried.index(top)
    if margin is None:
        margin = MARGIN * metric.points * (1.0 if metric.share else abs(best[top]))

    def inside(rate: float) -> bool:
        return rate in best and round((best[top] - best[rate]) * metric.points, DIGITS) <= margin

    while low > 0 and inside(tried[low - 1]):
        low -= 1
    while high < len(tried) - 1 and inside(tried[high + 1]):
        high += 1
    return Valley(
        points=tuple((rate, sign * best[rate]) for rate in sorted(best)),
        tried=tuple(tried),
        best=top,
        width=tried[high] / tried[low],
        margin=margin,
        ends=low == 0 or high == len(tried) - 1,
    )


def frontier(findings: Findings, task: str) -> tuple[Place, ...]:
    """All names with a size, and a score with every seed, on a task, the smallest first. Which are dominated is a matter of means alone.

    A name of which a seed failed has no place: its mean is one of survivors, which is to beat nobody.
    """
    metric = findings.metrics[task]
    found: dict[str, tuple[Entry, float, float]] = {}
    for name in findings.names:
        entry = findings.of(name).get(task)
        mean = mean_score(entry, metric)
        sizes = [] if entry is None else [size for size in entry.parameters if size is not None]
        if entry is not None and mean is not None and sizes:
            found[name] = (entry, float(np.mean(sizes)), mean)

    def dominator(name: str) -> str | None:
        _, size, mean = found[name]
        better = [other for other, (_, less, more) in found.items() if less <= size and more >= mean and (less < size or more > mean)]
        return max(better, key=lambda other: found[other][2], default=None)

    places = [
        Place(
            name=name,
            contestant=entry.contestant,
            parameters=size,
            score=spread([metric.points * score for score in entry.scores if score is not None]),
            dominated_by=dominator(name),
        )
        for name, (entry, size, _) in found.items()
    ]
    return tuple(sorted(places, key=lambda place: (place.parameters, place.name)))
