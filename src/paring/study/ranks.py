"""Mean ranks of names over tasks, by Friedman's and Nemenyi's tests. Source: Demšar, JMLR 7 (2006)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import friedmanchisquare, rankdata, studentized_range  # type: ignore[import-untyped, unused-ignore]

from paring.study.records import Findings
from paring.study.statistics import mean_score


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Mean ranks over tasks.

    Attributes:
        names: those that came to their end on every task with every seed.
        left_out: those that did not, and so have no rank.
        tasks: that count.
        means: mean rank of each name; 1 is best, ties share.
        p: of Friedman's test that all are alike; ``None`` for fewer than three names.
        difference: Nemenyi's critical difference at 5%; ``None`` where there is none.
        groups: names that lie within it of each other, as long as they can be, the best first.
        reason: why there are no ranks, or why one of these is missing; empty if nothing is.
    """

    names: tuple[str, ...]
    left_out: tuple[str, ...]
    tasks: tuple[str, ...]
    means: Mapping[str, float]
    p: float | None
    difference: float | None
    groups: tuple[tuple[str, ...], ...]
    reason: str


def mean_ranks(findings: Findings) -> Ranks:
    r"""Ranks of names on each task, and what Friedman and Nemenyi say of their means.

    A block is a task, scored by the mean over seeds: the seeds of one task are no tasks of their own. With :math:`k` names and :math:`N`
    tasks, means differ at 5% if they are further apart than :math:`q_{k} / \sqrt 2 \cdot \sqrt{k (k + 1) / 6 N}`, where :math:`q_k` is the
    95% quantile of the studentised range. A name of which a run failed is left out, neither ranked last nor ranked on what is left.
    """
    tasks = tuple(findings.metrics)
    complete: dict[str, list[float]] = {}
    for name in findings.names:
        scores = [mean_score(findings.of(name).get(task), metric) for task, metric in findings.metrics.items()]
        known = [score for score in scores if score is not None]
        if len(known) == len(tasks):
            complete[name] = known
    names = tuple(complete)
    left_out = tuple(name for name in findings.names if name not in complete)
    if len(names) < 2 or len(tasks) < 2:
        short = "two contestants that came to their end on every task with every seed" if len(names) < 2 else "two tasks"
        reason = f"Ranks need at least {short}."
        return Ranks(names=names, left_out=left_out, tasks=tasks, means={}, p=None, difference=None, groups=(), reason=reason)
    table = np.array(list(complete.values())).T
    ranks = np.array([rankdata(-row) for row in table])
    means = dict(zip(names, ranks.mean(axis=0).tolist(), strict=True))
    p, reason = None, "Friedman's test needs at least three contestants."
    if len(names) > 2:
        # Where every name is as good as every other on each task, SciPy's statistic is nothing over nothing.
        p, reason = 1.0 if (ranks == ranks[:, :1]).all() else float(friedmanchisquare(*table.T).pvalue), ""
    difference = critical_difference(len(names), len(tasks))
    groups = _groups(means, difference)
    return Ranks(names=names, left_out=left_out, tasks=tasks, means=means, p=p, difference=difference, groups=groups, reason=reason)


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
