"""What a study's scores say: means with their intervals, and differences that are paired by task and seed. All by SciPy.

Differences are told in points (:attr:`~paring.study.records.Metric.points`), with the sign turned where smaller is better, so that above
zero always means that the first is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, permutation_test  # type: ignore[import-untyped, unused-ignore]

from paring.core.errors import DataError, near
from paring.study.records import Entry, Findings, Metric

CONFIDENCE = 0.95
RESAMPLES = 9999
SEED = 0
FEW = 5
"""Seeds below which a bootstrap interval is plainly too narrow: it can't spread further than the few values there are."""
DIGITS = 9
"""Decimals of a point that count. What differs by less is rounding, and would break ties that are there."""

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


def spread(values: Sequence[float]) -> Interval:
    """The mean of values with its bootstrap interval."""
    return _interval([_in_order(values)])


def mean_score(entry: Entry | None, metric: Metric) -> float | None:
    """The mean over the seeds that came to their end, in points, larger is better; ``None`` if none did."""
    scores = [] if entry is None else [score for score in entry.scores if score is not None]
    return round(_sign(metric) * metric.points * float(np.mean(sorted(scores))), DIGITS) if scores else None


def compare(findings: Findings, first: str, second: str) -> Comparison:
    """The paired differences of two names, first minus second.

    Raises:
        DataError: the study has no such name.
    """
    ours, theirs = _named(findings, first), _named(findings, second)
    groups: dict[str, Floats] = {}
    missing = []
    # By name, so that numbers do not depend on the order in which tasks are given.
    for task, metric in sorted(findings.metrics.items()):
        pairs = _paired(ours.get(task), theirs.get(task), metric)
        if len(pairs):
            groups[task] = pairs
    for task in findings.metrics:
        gone = [name for name, of in ((first, ours), (second, theirs)) if task not in of]
        if gone:
            missing.append(f"{task}: {' and '.join(gone)} {'is' if len(gone) == 1 else 'are'} not there")
            continue
        for name, of in ((first, ours), (second, theirs)):
            failed = [str(seed) for seed, score in zip(findings.seeds, of[task].scores, strict=True) if score is None]
            if failed:
                missing.append(f"{task}: {name} did not come to its end with seed{'' if len(failed) == 1 else 's'} {', '.join(failed)}")
    return Comparison(
        first=first,
        second=second,
        tasks={task: _interval([groups[task]]) for task in findings.metrics if task in groups},
        overall=_interval(list(groups.values())) if groups else None,
        p=_sign_flips(list(groups.values())) if groups else None,
        missing=tuple(missing),
    )


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """P values of several tests, corrected for there being several by Holm's step-down method: the chance of any false alarm is bounded.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    corrected: dict[str, float] = {}
    highest = 0.0
    for place, name in enumerate(sorted(values, key=lambda name: values[name])):
        highest = max(highest, min(1.0, (len(values) - place) * values[name]))
        corrected[name] = highest
    return corrected


def not_told_apart(findings: Findings, task: str) -> tuple[str, frozenset[str]] | None:
    """The name with the best mean on a task, and those whose paired difference to it has an interval that holds zero.

    ``None`` where nothing came to its end. With a single seed there is no interval, and nothing is told apart.
    """
    metric = findings.metrics[task]
    entries = {name: entry for name in findings.names if (entry := findings.of(name).get(task)) is not None}
    means = {name: mean for name, entry in entries.items() if (mean := mean_score(entry, metric)) is not None}
    if not means:
        return None
    best = max(means, key=lambda name: means[name])
    pairs = {name: _paired(entries[best], entries[name], metric) for name in means if name != best}
    return best, frozenset(name for name, values in pairs.items() if not len(values) or _interval([values]).holds_zero)


def _named(findings: Findings, name: str) -> dict[str, Entry]:
    if name not in findings.names:
        known = ", ".join(findings.names)
        raise DataError(f"The study has no contestant {name!r}.{near(name, findings.names)} It has {known}.")
    return findings.of(name)


def _sign(metric: Metric) -> float:
    return 1.0 if metric.larger_is_better else -1.0


def _paired(first: Entry | None, second: Entry | None, metric: Metric) -> Floats:
    """The differences of the seeds with which both came to their end."""
    if first is None or second is None:
        return _in_order([])
    return _in_order(
        [
            round((mine - yours) * _sign(metric) * metric.points, DIGITS)
            for mine, yours in zip(first.scores, second.scores, strict=True)
            if mine is not None and yours is not None
        ]
    )


def _in_order(values: Sequence[float]) -> Floats:
    """Rising, so that draws with a given seed do not depend on the order of the seeds."""
    return np.sort(np.asarray(values, dtype=np.float64))


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

    # Percentiles, since SciPy's BCa gives no number where all values of a sample are equal.
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
        # Flips whose sums are equal must be so to the last bit.
        return sample.sum(axis=axis).round(DIGITS)

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
