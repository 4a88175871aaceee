"""What a study's numbers say: paired differences, ranks over tasks, how narrow a rate's valley is, what is worth its size. All by SciPy.

Differences are told in points (:attr:`~paring.study.records.Metric.points`), with the sign turned where smaller is better, so that above
zero always means that the first is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, friedmanchisquare, permutation_test, rankdata, studentized_range  # type: ignore[import-untyped, unused-ignore]

from paring.study.records import Entry, Findings, Metric, State

CONFIDENCE = 0.95
RESAMPLES = 9999
SEED = 0
FEW = 5
"""Seeds below which a bootstrap interval is plainly too narrow: it can't spread further than the few values there are."""

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and what the bootstrap says of it.

    Attributes:
        mean: of the values.
        low, high: percentile bootstrap interval of 95%; ``None`` where there are fewer than two values in a group.
        count: values.
    """

    mean: float
    low: float | None
    high: float | None
    count: int

    @property
    def holds_zero(self) -> bool:
        """Whether no difference can be told; without an interval none can."""
        return self.low is None or self.high is None or self.low <= 0.0 <= self.high


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two names, paired by task and seed.

    Attributes:
        first, second: their names.
        tasks: of each task the paired differences over seeds.
        overall: of the mean over tasks of the tasks' means; seeds are drawn anew within each task, tasks are not.
        p: of the two-sided sign-flip test that the mean over tasks of the tasks' means is zero; ``None`` where there are no pairs.
        missing: what could not be compared, in words.
    """

    first: str
    second: str
    tasks: Mapping[str, Interval]
    overall: Interval | None
    p: float | None
    missing: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Mean ranks over tasks.

    Attributes:
        names: those that came to an end on every task that counts.
        tasks: that count.
        means: mean rank of each name; 1 is best, ties share.
        p: of Friedman's test that all are alike; ``None`` for fewer than three names.
        difference: Nemenyi's critical difference at 5%; ``None`` where there is none.
        groups: names that lie within it of each other, as long as they can be, the best first.
        reason: why there are no ranks, or why one of these is missing; empty if nothing is.
    """

    names: tuple[str, ...]
    tasks: tuple[str, ...]
    means: Mapping[str, float]
    p: float | None
    difference: float | None
    groups: tuple[tuple[str, ...], ...]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Valley:
    """How a score depends on the learning rate.

    Attributes:
        points: learning rate and score of the finished trials, the best of each rate, by rate.
        best: the rate of the best.
        width: the largest rate within ``margin`` of the best score divided by the smallest, of the rates around the best that are all so;
            1 where no neighbour is. It can't be seen wider than the rates that were tried.
        margin: in points.
        ends: whether the smallest or the largest rate that was tried is among them, so that the valley may be wider.
    """

    points: tuple[tuple[float, float], ...]
    best: float
    width: float
    margin: float
    ends: bool


@dataclass(frozen=True, kw_only=True)
class Place:
    """A name in the plane of size and score.

    Attributes:
        name: of contestant and budget.
        parameters: mean over seeds.
        score: over seeds, in points, as the metric has it.
        dominated: whether another has at most so many parameters and at least so good a mean, and one of the two is better.
    """

    name: str
    parameters: float
    score: Interval
    dominated: bool


def spread(values: Sequence[float]) -> Interval:
    """The mean of values with its bootstrap interval."""
    return _interval([np.asarray(values, dtype=np.float64)])


def compare(findings: Findings, first: str, second: str) -> Comparison:
    """The paired differences of two names, first minus second.

    Raises:
        KeyError: the study has no such name.
    """
    for name in (first, second):
        if name not in findings.names:
            raise KeyError(name)
    ours, theirs = findings.of(first), findings.of(second)
    tasks: dict[str, Floats] = {}
    missing = []
    for task, metric in findings.metrics.items():
        if task not in ours or task not in theirs:
            missing.append(f"{task}: only one of the two is there")
            continue
        pairs = [
            (mine - yours) * _sign(metric) * metric.points
            for mine, yours in zip(ours[task].scores, theirs[task].scores, strict=True)
            if mine is not None and yours is not None
        ]
        if len(pairs) < len(findings.seeds):
            missing.append(f"{task}: {len(findings.seeds) - len(pairs)} of {len(findings.seeds)} seeds lack a run that came to its end")
        if pairs:
            tasks[task] = np.asarray(pairs, dtype=np.float64)
    groups = list(tasks.values())
    return Comparison(
        first=first,
        second=second,
        tasks={task: _interval([values]) for task, values in tasks.items()},
        overall=_interval(groups) if groups else None,
        p=_sign_flips(groups) if groups else None,
        missing=tuple(missing),
    )


def _sign(metric: Metric) -> float:
    return 1.0 if metric.larger_is_better else -1.0


def _interval(groups: Sequence[Floats]) -> Interval:
    """Of the mean of the groups' means, each group drawn anew by itself."""
    mean = float(np.mean([values.mean() for values in groups]))
    count = sum(len(values) for values in groups)
    if any(len(values) < 2 for values in groups):
        return Interval(mean=mean, low=None, high=None, count=count)
    if all(np.ptp(values) == 0 for values in groups):
        return Interval(mean=mean, low=mean, high=mean, count=count)

    def statistic(*samples: Floats, axis: int = -1) -> Any:
        return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)

    found = bootstrap(
        tuple(groups),
        statistic,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return Interval(mean=mean, low=float(found.low), high=float(found.high), count=count)


def _sign_flips(groups: Sequence[Floats]) -> float:
    """Two-sided; exact where there are few enough pairs, else by random flips."""
    values = np.concatenate(groups)
    # A value's part in the mean of the tasks' means, so that one sum is the statistic.
    parts = np.concatenate([group / len(group) for group in groups])
    if len(values) < 2 or not values.any():
        return 1.0

    def statistic(sample: Floats, axis: int = -1) -> Any:
        return sample.sum(axis=axis)

    found = permutation_test(
        (parts,),
        statistic,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        alternative="two-sided",
        vectorized=True,
        rng=np.random.default_rng(SEED),
    )
    return float(found.pvalue)


def mean_ranks(findings: Findings) -> Ranks:
    r"""Ranks of names on each task, and what Friedman and Nemenyi say of their means.

    A block is a task, scored by the mean over seeds: the seeds of one task are no tasks of their own. With :math:`k` names and :math:`N`
    tasks, means differ at 5% if they are further apart than :math:`q_{k} / \sqrt 2 \cdot \sqrt{k (k + 1) / 6 N}`, where :math:`q_k` is the
    95% quantile of the studentised range. Source: Demšar, JMLR 7 (2006).
    """
    names = [name for name in findings.names if all(_mean(findings.of(name).get(task)) is not None for task in findings.metrics)]
    tasks = tuple(findings.metrics)
    if len(names) < 2 or len(tasks) < 2:
        short = "two contestants that came to an end on every task" if len(names) < 2 else "two tasks"
        return Ranks(names=tuple(names), tasks=tasks, means={}, p=None, difference=None, groups=(), reason=f"Ranks need at least {short}.")
    scores = np.array([[_sign(findings.metrics[task]) * (_mean(findings.of(name)[task]) or 0.0) for name in names] for task in tasks])
    ranks = np.array([rankdata(-row) for row in scores])
    means = dict(zip(names, ranks.mean(axis=0).tolist(), strict=True))
    count, blocks = len(names), len(tasks)
    if count < 3:
        reason = "Friedman's test and critical differences need at least three contestants."
        return Ranks(names=tuple(names), tasks=tasks, means=means, p=None, difference=None, groups=(), reason=reason)
    alike = bool((ranks == ranks[:, :1]).all())
    p = 1.0 if alike else float(friedmanchisquare(*scores.T).pvalue)
    difference = critical_difference(count, blocks)
    return Ranks(names=tuple(names), tasks=tasks, means=means, p=p, difference=difference, groups=_groups(means, difference), reason="")


def critical_difference(names: int, tasks: int, level: float = 0.05) -> float:
    """Nemenyi's, of mean ranks."""
    quantile = float(studentized_range.ppf(1 - level, names, math.inf))
    return quantile / math.sqrt(2) * math.sqrt(names * (names + 1) / (6 * tasks))


def _groups(means: Mapping[str, float], difference: float) -> tuple[tuple[str, ...], ...]:
    """Runs of neighbours that lie within the difference, none of which is part of another."""
    order = sorted(means, key=lambda name: (means[name], name))
    found: list[tuple[str, ...]] = []
    for start in range(len(order)):
        group = tuple(name for name in order[start:] if means[name] - means[order[start]] <= difference)
        if len(group) > 1 and not any(set(group) <= set(other) for other in found):
            found.append(group)
    return tuple(found)


def _mean(entry: Entry | None) -> float | None:
    scores = [] if entry is None else [score for score in entry.scores if score is not None]
    return float(np.mean(scores)) if scores else None


def valley(entry: Entry, metric: Metric, margin: float = 1.0) -> Valley | None:
    """The learning-rate curve of a search; ``None`` where no rate was searched, or no trial came to its end."""
    sign = _sign(metric)
    best: dict[float, float] = {}
    for trial in entry.trials:
        rate = trial.values.get("learning_rate")
        if rate is not None and trial.state is State.FINISHED and trial.score is not None:
            best[rate] = max(best.get(rate, -math.inf), sign * trial.score)
    if not best:
        return None
    rates = sorted(best)
    top = max(rates, key=lambda rate: (best[rate], -rate))
    place = rates.index(top)

    def inside(rate: float) -> bool:
        return (best[top] - best[rate]) * metric.points <= margin

    low = high = place
    while low > 0 and inside(rates[low - 1]):
        low -= 1
    while high < len(rates) - 1 and inside(rates[high + 1]):
        high += 1
    return Valley(
        points=tuple((rate, sign * best[rate]) for rate in rates),
        best=top,
        width=rates[high] / rates[low],
        margin=margin,
        ends=low == 0 or high == len(rates) - 1,
    )


def frontier(findings: Findings, task: str) -> tuple[Place, ...]:
    """All names with a size and a score on a task, the smallest first."""
    metric = findings.metrics[task]
    found = []
    for name in findings.names:
        entry = findings.of(name).get(task)
        scores = [] if entry is None else [metric.points * score for score in entry.scores if score is not None]
        sizes = [] if entry is None else [size for size in entry.parameters if size is not None]
        if scores and sizes:
            found.append((name, float(np.mean(sizes)), spread(scores)))

    def better(size: float, score: float, other_size: float, other: float) -> bool:
        gain = _sign(metric) * (score - other)
        return size <= other_size and gain >= 0 and (size < other_size or gain > 0)

    def dominated(size: float, score: float) -> bool:
        return any(better(other_size, other.mean, size, score) for _, other_size, other in found)

    places = [Place(name=name, parameters=size, score=score, dominated=dominated(size, score.mean)) for name, size, score in found]
    return tuple(sorted(places, key=lambda place: (place.parameters, place.name)))


def not_told_apart(findings: Findings, task: str) -> tuple[str, frozenset[str]] | None:
    """The name with the best mean on a task, and those whose paired difference to it has an interval that holds zero.

    ``None`` where nothing came to its end. With a single seed there is no interval, and nothing is told apart.
    """
    metric = findings.metrics[task]
    scored = {name: mean for name in findings.names if (mean := _mean(findings.of(name).get(task))) is not None}
    if not scored:
        return None
    best = max(scored, key=lambda name: _sign(metric) * scored[name])
    told: Callable[[str], Interval | None] = lambda name: compare(findings, best, name).tasks.get(task)  # noqa: E731
    alike = {name for name in scored if name != best and ((found := told(name)) is None or found.holds_zero)}
    return best, frozenset(alike)
