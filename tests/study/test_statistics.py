"""A study's statistics against computations of their own."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from paring.study.records import Findings
from paring.study.results import costs_to_json, to_json
from paring.study.statistics import (
    compare,
    critical_difference,
    frontier,
    mean_ranks,
    not_told_apart,
    spread,
    valley,
)
from tests.study.samples import ACCURACY, PERPLEXITY, entry, findings, one_seed, usual

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


def test_smaller_may_be_better_for_ranks_and_differences() -> None:
    rows = [entry(name, "notes", [value]) for name, value in (("low", 10.0), ("mid", 11.0), ("high", 12.0))]
    rows += [entry(name, "more", [value]) for name, value in (("low", 10.0), ("mid", 11.0), ("high", 12.0))]
    study = findings(*rows, metrics={"notes": PERPLEXITY, "more": PERPLEXITY})
    assert mean_ranks(study).means == {"low": 1.0, "mid": 2.0, "high": 3.0}
    overall = compare(study, "low", "high").overall
    assert overall is not None
    assert overall.mean == 2.0


def test_ranks_say_why_there_are_none() -> None:
    assert "two tasks" in mean_ranks(findings(entry("a", "t", [0.1]), entry("b", "t", [0.2]))).reason
    assert "two contestants" in mean_ranks(findings(entry("a", "t", [0.1]), entry("a", "u", [0.2]))).reason
    pair = mean_ranks(findings(*(entry(name, task, [0.1]) for name in "ab" for task in "tu")))
    assert (pair.means, pair.p, pair.difference) == ({"a": 1.5, "b": 1.5}, None, None)
    assert "three contestants" in pair.reason
    # Who failed on a task is left out, and not ranked last.
    rows = [entry(name, task, [0.1]) for name in "abc" for task in "tu"] + [entry("d", "t", [0.9]), entry("d", "u", [None])]
    assert mean_ranks(findings(*rows)).names == ("a", "b", "c")
    assert mean_ranks(findings(*rows)).p == 1.0


def test_differences_are_paired_and_told_in_points() -> None:
    study = findings(entry("a", "t", [0.90, 0.70, 0.80]), entry("b", "t", [0.89, 0.68, 0.77]))
    found = compare(study, "a", "b")
    task = found.tasks["t"]
    assert task.mean == pytest.approx(2.0)
    assert (task.low, task.high) == pytest.approx((1.0, 3.0))
    assert not task.holds_zero
    back = compare(study, "b", "a").tasks["t"]
    assert (back.mean, back.low, back.high) == pytest.approx((-2.0, -3.0, -1.0))
    # All three have the sign: of the 8 ways to flip, two are as far from zero.
    assert found.p == pytest.approx(2 / 8)


def test_the_sign_flip_test_is_that_of_all_flips() -> None:
    first, second = [0.5, 0.1, -0.2, 0.4], [0.3, 0.6]
    study = findings(
        entry("a", "t", [0.5 + value / 100 for value in first]),
        entry("b", "t", [0.5] * 4),
        entry("a", "u", [0.5 + value / 100 for value in second] + [None, None]),
        entry("b", "u", [0.5] * 4),
    )
    parts = [value / 4 for value in first] + [value / 2 for value in second]
    sums = [abs(sum(sign * part for sign, part in zip(signs, parts, strict=True))) for signs in itertools.product((1, -1), repeat=6)]
    found = compare(study, "a", "b")
    assert found.p == pytest.approx(np.mean([value >= sums[0] - 1e-9 for value in sums]))
    assert found.missing == ("u: 2 of 4 seeds lack a run that came to its end",)
    assert found.overall is not None
    assert found.overall.mean == pytest.approx((0.2 + 0.45) / 2)


def test_each_task_counts_alike_and_its_seeds_are_drawn_by_themselves() -> None:
    study = findings(
        entry("a", "t", [0.51, 0.51, 0.51]), entry("b", "t", [0.5] * 3), entry("a", "u", [0.47, 0.5, 0.53]), entry("b", "u", [0.5] * 3)
    )
    found = compare(study, "a", "b")
    assert found.tasks["t"].low == found.tasks["t"].high == pytest.approx(1.0)
    assert found.overall is not None
    assert found.overall.mean == pytest.approx(0.5)
    # All that varies is u's mean, from -3 to 3, of which the overall one takes half.
    wide = found.tasks["u"]
    assert wide.low is not None
    assert found.overall.low == pytest.approx(0.5 + wide.low / 2, abs=0.05)


def test_an_interval_holds_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(7)
    hits = 0
    for _ in range(300):
        interval = spread(generator.normal(1.0, 1.0, 40).tolist())
        assert interval.low is not None
        assert interval.high is not None
        hits += interval.low <= 1.0 <= interval.high
    assert 0.90 <= hits / 300 <= 0.98


def test_a_single_value_has_no_interval_and_equal_ones_have_one_without_width() -> None:
    alone = spread([1.0])
    assert (alone.mean, alone.low, alone.high, alone.holds_zero) == (1.0, None, None, True)
    equal = spread([2.0, 2.0])
    assert (equal.low, equal.high, equal.holds_zero) == (2.0, 2.0, False)
    found = compare(one_seed(), "LoRA", "SoRA")
    assert found.overall is not None
    assert found.overall.low is None


def test_the_same_findings_give_the_same_numbers_in_any_order() -> None:
    study = usual()
    again = replace(study, entries=tuple(reversed(study.entries)), metrics=dict(reversed(list(study.metrics.items()))))
    one, other = (compare(each, "LoRA", "cut @ 1/2") for each in (study, again))
    assert one.tasks == other.tasks
    assert one.p == pytest.approx(other.p)
    assert mean_ranks(study).means == mean_ranks(again).means
    assert to_json(study) == to_json(usual())


def test_a_valley_is_as_wide_as_the_rates_around_the_best_that_are_as_good() -> None:
    found = valley(entry("a", "t", [0.9], trials=(0.80, 0.90, 0.895, 0.5)), ACCURACY)
    assert found is not None
    assert (found.best, found.width, found.ends) == (1e-3, pytest.approx(3.0), False)
    assert [rate for rate, _ in found.points] == [3e-4, 1e-3, 3e-3, 1e-2]
    open_end = valley(entry("a", "t", [0.9], trials=(0.80, None, 0.895, 0.9)), ACCURACY)
    assert open_end is not None
    assert (open_end.best, open_end.width, open_end.ends) == (1e-2, pytest.approx(1e-2 / 3e-3), True)
    # A good rate behind a bad one is another valley.
    apart = valley(entry("a", "t", [0.9], trials=(0.9, 0.5, 0.9, 0.5)), ACCURACY)
    assert apart is not None
    assert (apart.best, apart.width) == (3e-4, 1.0)
    lower = valley(entry("a", "t", [30.0], trials=(36.0, 30.0, 30.5, 90.0)), PERPLEXITY)
    assert lower is not None
    assert (lower.best, lower.width) == (1e-3, pytest.approx(3.0))
    assert valley(replace(entry("a", "t", [0.9]), trials=()), ACCURACY) is None


def test_the_frontier_knows_what_is_worth_its_size() -> None:
    places = frontier(usual(), "trec")
    assert [place.name for place in places] == ["cut @ 1/8", "cut @ 1/2", "SoRA", "LoRA"]
    assert [place.dominated for place in places] == [False, False, True, False]
    lower = {place.name: place.dominated for place in frontier(usual(), "notes")}
    assert lower["SoRA"]
    assert not lower["LoRA"]


def test_names_that_are_not_told_apart_from_the_best() -> None:
    found = not_told_apart(usual(), "trec")
    assert found is not None
    best, alike = found
    assert best == "LoRA"
    assert "cut @ 1/8" not in alike  # one point below at every seed
    assert not_told_apart(one_seed(), "trec") == ("SoRA", frozenset({"LoRA"}))


def test_results_have_nothing_that_two_runs_would_differ_in() -> None:
    study = usual()
    slower = replace(
        study,
        entries=tuple(replace(one, seconds=(1.0,) * 3, search_seconds=9.0, memory=(7,) * 3) for one in study.entries),
        versions={"torch": ["3"]},
        machines=[],
        command="elsewhere",
    )
    assert to_json(study) == to_json(slower)
    assert costs_to_json(study) != costs_to_json(slower)
    data = json.loads(to_json(study))
    assert [row["first"] for row in data["comparisons"]] == ["cut @ 1/8", "cut @ 1/2", "SoRA"]
    assert data["entries"][0]["trials"][1] == {"score": 0.9, "state": "finished", "values": {"learning_rate": 1e-3}}
    assert json.loads(costs_to_json(study))["entries"][0]["seconds"] == [60.0] * 3


def test_findings_survive_the_file() -> None:
    for study in (usual(), one_seed()):
        assert Findings.from_json(study.to_json()) == study
