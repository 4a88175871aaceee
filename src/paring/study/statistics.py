"""What a study's scores say: means with their intervals, and differences that are paired by task and seed. Distributions are SciPy's.

Differences are told in points (:attr:`~paring.study.records.Metric.points`), with the sign turned where smaller is better, so that above
zero always means that the first is better.

What varies are the seeds, and all that a seed draws. Tasks are fixed, and so are the rows of dev: intervals are over neither. Seeds are
few, so intervals are Student's: a bootstrap of so few values is too narrow (``tests/study/test_coverage.py`` has the numbers).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import permutation_test, t  # type: ignore[import-untyped, unused-ignore]

from paring.core.errors import DataError, near
from paring.study.records import Entry, Findings, Metric

CONFIDENCE = 0.95
RESAMPLES = 9999
SEED = 0
FEW = 10
"""Seeds below which a reader is told what so few cannot show."""
DIGITS = 9
"""Decimals of a point that count. What differs by less is rounding, and would break ties that are there."""

Floats: TypeAlias = NDArray[np.float64]
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean, and how far it is known.

    Attributes:
        mean: of the values.
        low, high: Student's t interval of 95% (:func:`spread`); ``None`` where there are fewer than two values in a group, or no two that
            differ.
        count: values.
    """

    mean: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two names, paired by task and seed.

    Attributes:
        first, second: their names.
        tasks: of each task the paired differences over seeds.
        overall: of the mean over tasks of the tasks' means; ``None`` where any run is missing, since those that are left are no fair
            sample of either side: who fails on the hard task has a mean over the easy ones.
        p: of the two-sided sign-flip test that this mean is zero; ``None`` where there is no such mean.
        missing: what could not be compared, in words.
    """

    first: str
    second: str
    tasks: Mapping[str, Interval]
    overall: Interval | None
    p: float | None
    missing: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best mean on a task, and who is told apart from it.

    Attributes:
        name: that has it, of those that came to their end with every seed.
        alike: others that did so too, and are not told apart from it.
        apart: those that are.
    """

    name: str
    alike: frozenset[str]
    apart: frozenset[str]


def spread(values: Sequence[float]) -> Interval:
    r"""The mean of :math:`n` values with its 95% interval, :math:`\bar x \pm t_{n-1} s / \sqrt n`. Source: Student, Biometrika 6 (1908)."""
    return _interval([_in_order(values)])


def mean_score(entry: Entry | None, metric: Metric) -> float | None:
    """The mean over seeds, in points, larger is better; ``None`` unless every seed came to its end: survivors compare with nothing."""
    scores = [] if entry is None else [score for score in entry.scores if score is not None]
    if entry is None or not scores or len(scores) < len(entry.scores):
        return None
    return round(_sign(metric) * metric.points * float(np.mean(sorted(scores))), DIGITS)


def compare(findings: Findings, first: str, second: str) -> Comparison:
    r"""The paired differences of two names, first minus second.

    On a task the interval is that of :func:`spread` over the differences. The mean over :math:`T` tasks of their means has the variance
    :math:`T^{-2} \sum_t s_t^2 / n_t`, with the degrees of freedom of Welch and Satterthwaite,
    :math:`(\sum_t s_t^2 / n_t)^2 / \sum_t (s_t^2 / n_t)^2 / (n_t - 1)`. Source: Satterthwaite, Biometrics Bulletin 2 (1946).

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
        overall=_interval(list(groups.values())) if groups and not missing else None,
        p=_sign_flips(list(groups.values())) if groups and not missing else None,
        missing=tuple(missing),
    )


def holm(values: Mapping[K, float]) -> dict[K, float]:
    """P values of several tests, corrected for there being several by Holm's step-down method: the chance of any false alarm is bounded.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    corrected: dict[K, float] = {}
    highest = 0.0
    for place, name in enumerate(sorted(values, key=lambda name: values[name])):
        highest = max(highest, min(1.0, (len(values) - place) * values[name]))
        corrected[name] = highest
    return corrected


def best(findings: Findings, task: str) -> Best | None:
    """The best mean on a task, and who is told apart from it: a paired t test of the seeds' differences has p < 0.05 after :func:`holm`.

    The correction is for all pairs of names: which one is the best was seen in the same scores, so any pair might have been looked at. Of
    names that are all equal, at least one is then told apart in at most 5% of studies. ``None`` where none came to its end with every
    seed. With a single seed nothing is told apart.
    """
    metric = findings.metrics[task]
    entries = {name: entry for name in findings.names if (entry := findings.of(name).get(task)) is not None}
    means = {name: mean for name, entry in entries.items() if (mean := mean_score(entry, metric)) is not None}
    if not means:
        return None
    top = max(means, key=lambda name: means[name])
    pairs = {
        frozenset((one, other)): _t_test(_paired(entries[one], entries[other], metric))
        for one, other in itertools.combinations(sorted(means), 2)
    }
    corrected = holm(pairs)
    apart = frozenset(name for name in means if name != top and corrected[frozenset((top, name))] < 1 - CONFIDENCE)
    return Best(name=top, alike=frozenset(means) - apart - {top}, apart=apart)


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
    """Rising, so that sums and draws do not depend on the order of the seeds."""
    return np.sort(np.asarray(values, dtype=np.float64))


def _student(groups: Sequence[Floats]) -> tuple[float, float, float] | None:
    """Mean of the groups' means, its standard error and degrees of freedom; ``None`` where no spread is seen to tell them from."""
    if any(len(values) < 2 for values in groups):
        return None
    parts = np.array([values.var(ddof=1) / len(values) for values in groups])
    # Equal values can differ by rounding in a mean, never in their range.
    parts[[not np.ptp(values) for values in groups]] = 0.0
    if not parts.any():
        return None
    # Relative to the largest, so that no square is too small for a float.
    shares = parts / parts.max()
    freedom = float(shares.sum() ** 2 / sum(share**2 / (len(values) - 1) for share, values in zip(shares, groups, strict=True)))
    return _mean(groups), math.sqrt(float(parts.sum())) / len(groups), freedom


def _mean(groups: Sequence[Floats]) -> float:
    return float(np.mean([values.mean() for values in groups]))


def _interval(groups: Sequence[Floats]) -> Interval:
    """Of the mean of the groups' means."""
    found, count = _student(groups), sum(len(values) for values in groups)
    if found is None:
        return Interval(mean=_mean(groups), low=None, high=None, count=count)
    mean, error, freedom = found
    low, high = t.interval(CONFIDENCE, freedom, loc=mean, scale=error)
    return Interval(mean=mean, low=float(low), high=float(high), count=count)


def _t_test(values: Floats) -> float:
    """The two-sided p value that the mean is zero."""
    found = _student([values])
    if found is None:
        # Where all are equal, as scores of few rows can be, t would be certain of what a coarse metric hides; signs are not.
        return _sign_flips([values])
    mean, error, freedom = found
    return float(2 * t.sf(abs(mean) / error, freedom))


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
