"""Mean ranks, against a published table and examples by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from paring.study.ranks import critical_difference, mean_ranks
from tests.study.samples import PERPLEXITY, entry, findings, usual

DEMSAR = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}
"""Table 5a of Demšar, JMLR 7 (2006): critical values of the two-tailed Nemenyi test at 5%."""


@pytest.mark.parametrize(("names", "value"), DEMSAR.items())
def test_critical_differences_are_those_of_the_published_table(names: int, value: float) -> None:
    for tasks in (3, 14):
        assert critical_difference(names, tasks) == pytest.approx(value * math.sqrt(names * (names + 1) / (6 * tasks)), rel=1e-3)


def test_ranks_and_friedman_of_an_example_by_hand() -> None:
    scores = {"a": (0.9, 0.8, 0.7, 0.6), "b": (0.8, 0.7, 0.6, 0.5), "c": (0.8, 0.6, 0.5, 0.4)}
    tasks = ("t0", "t1", "t2", "t3")
    rows = [entry(name, task, [score]) for name, values in scores.items() for task, score in zip(tasks, values, strict=True)]
    found = mean_ranks(findings(*rows))
    # b and c share the second and third place on t0.
    assert found.means == {"a": 1.0, "b": (2.5 + 2 + 2 + 2) / 4, "c": (2.5 + 3 + 3 + 3) / 4}
    # Friedman's statistic: 12 N / (k (k + 1)) sum R^2 - 3 N (k + 1), over its correction for ties.
    n, k = 4, 3
    plain = 12 * n / (k * (k + 1)) * sum(mean**2 for mean in found.means.values()) - 3 * n * (k + 1)
    ties = 1 - (2**3 - 2) / (n * (k**3 - k))
    assert found.p == pytest.approx(math.exp(-plain / ties / 2))  # chi-squared with two degrees of freedom
    assert found.difference == pytest.approx(critical_difference(3, 4))
    assert found.groups == (("a", "b"), ("b", "c"))


def test_ranks_say_why_there_are_none() -> None:
    assert "two tasks" in mean_ranks(findings(entry("a", "t", [0.1]), entry("b", "t", [0.2]))).reason
    assert "two contestants" in mean_ranks(findings(entry("a", "t", [0.1]), entry("a", "u", [0.2]))).reason
    pair = mean_ranks(findings(*(entry(name, task, [0.1]) for name in "ab" for task in "tu")))
    assert (pair.means, pair.p) == ({"a": 1.5, "b": 1.5}, None)
    assert "three contestants" in pair.reason
    # Two have a critical difference all the same: 1.960 in the table, times the root of 2 * 3 / (6 * 2).
    assert pair.difference == pytest.approx(1.960 * math.sqrt(0.5), rel=1e-3)
    # Who failed on a task is left out, and not ranked last.
    rows = [entry(name, task, [0.1]) for name in "abc" for task in "tu"] + [entry("d", "t", [0.9]), entry("d", "u", [None])]
    found = mean_ranks(findings(*rows))
    assert (found.names, found.left_out) == (("a", "b", "c"), ("d",))
    assert found.p == 1.0


def test_survivors_have_no_rank() -> None:
    rows = [entry("A", task, [0.99, None, None]) for task in "tu"]
    rows += [entry(name, task, [score] * 3) for name, score in (("B", 0.8), ("C", 0.7)) for task in "tu"]
    found = mean_ranks(findings(*rows))
    assert (found.means, found.left_out) == ({"B": 1.0, "C": 2.0}, ("A",))


def test_smaller_may_be_better() -> None:
    rows = [entry(name, task, [value]) for task in ("notes", "more") for name, value in (("low", 10.0), ("mid", 11.0), ("high", 12.0))]
    study = findings(*rows, metrics={"notes": PERPLEXITY, "more": PERPLEXITY})
    assert mean_ranks(study).means == {"low": 1.0, "mid": 2.0, "high": 3.0}


def test_seeds_are_no_tasks_of_their_own() -> None:
    # "a" is better with most seeds, and "b" by the mean over them.
    rows = [entry("a", task, [0.61, 0.61, 0.10]) for task in "tu"] + [entry("b", task, [0.60, 0.60, 0.60]) for task in "tu"]
    assert mean_ranks(findings(*rows)).means == {"a": 2.0, "b": 1.0}


def test_equal_means_share_a_rank_in_whatever_order_their_seeds_are() -> None:
    first, second = [0.1, 0.2, 0.3], [0.3, 0.2, 0.1]
    assert sum(first) != sum(second)  # by rounding
    rows = [entry(name, task, scores) for task in "tu" for name, scores in (("a", first), ("b", second))]
    assert mean_ranks(findings(*rows)).means == {"a": 1.5, "b": 1.5}


def test_the_order_of_tasks_and_names_does_not_matter() -> None:
    study = usual()
    again = replace(study, entries=tuple(reversed(study.entries)), metrics=dict(reversed(list(study.metrics.items()))))
    one, other = mean_ranks(study), mean_ranks(again)
    assert one.means == other.means
    assert one.groups == other.groups
    assert one.p == pytest.approx(other.p)


@pytest.mark.parametrize(
    ("scores", "groups"),
    [
        # Means 1, 2, 3, 4, 5 over five tasks, 2.73 apart at most: three runs of three, each as long as it can be.
        ((0.9, 0.8, 0.7, 0.6, 0.5), (("a", "b", "c"), ("b", "c", "d"), ("c", "d", "e"))),
        # All alike: one group of all.
        ((0.5, 0.5, 0.5, 0.5, 0.5), (("a", "b", "c", "d", "e"),)),
    ],
)
def test_groups_are_as_long_as_they_can_be(scores: tuple[float, ...], groups: tuple[tuple[str, ...], ...]) -> None:
    rows = [entry(name, f"t{task}", [score]) for task in range(5) for name, score in zip("abcde", scores, strict=True)]
    found = mean_ranks(findings(*rows))
    assert found.difference == pytest.approx(2.728 * math.sqrt(5 * 6 / (6 * 5)), rel=1e-3)
    assert found.groups == groups
