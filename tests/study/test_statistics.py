"""A study's statistics against computations of their own."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from paring.core.errors import DataError
from paring.study.statistics import compare, holm, not_told_apart, spread
from tests.study.samples import PERPLEXITY, entry, findings, one_seed, usual


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
    assert found.missing == ("u: a did not come to its end with seeds 2, 3",)
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


def test_names_that_are_not_told_apart_from_the_best() -> None:
    found = not_told_apart(usual(), "trec")
    assert found is not None
    best, alike = found
    assert best == "LoRA"
    assert "cut @ 1/8" not in alike  # one point below at every seed
    assert not_told_apart(one_seed(), "trec") == ("SoRA", frozenset({"LoRA"}))


def test_smaller_may_be_better() -> None:
    study = findings(entry("low", "notes", [10.0]), entry("high", "notes", [12.0]), metrics={"notes": PERPLEXITY})
    assert compare(study, "low", "high").tasks["notes"].mean == 2.0
    assert compare(study, "high", "low").tasks["notes"].mean == -2.0
    assert not_told_apart(study, "notes") == ("low", frozenset({"high"}))


def test_the_same_findings_give_the_same_numbers_in_any_order() -> None:
    study = usual()
    turned = replace(study, entries=tuple(reversed(study.entries)), metrics=dict(reversed(list(study.metrics.items()))))
    order = (2, 0, 1)
    shuffled = replace(study, entries=tuple(replace(one, scores=tuple(one.scores[place] for place in order)) for one in study.entries))
    found = compare(study, "LoRA", "cut @ 1/2")
    for other in (turned, shuffled):
        again = compare(other, "LoRA", "cut @ 1/2")
        assert (again.tasks, again.overall, again.p) == (found.tasks, found.overall, found.p)


def test_ties_are_ties_though_decimals_are_not_binary() -> None:
    # Differences of whole fifths of a point, as of 500 rows: many flips have the same sum, which rounding must not tell apart.
    steps = (-2, -2, 1, 4, 0, -3)
    base = (0.71, 0.552, 0.78, 0.278, 0.112, 0.582)
    scores = [round(low + step / 500, 3) for low, step in zip(base, steps, strict=True)]
    study = findings(entry("a", "t", scores), entry("b", "t", list(base)))
    sums = [sum(sign * step for sign, step in zip(signs, steps, strict=True)) for signs in itertools.product((1, -1), repeat=6)]
    assert compare(study, "a", "b").p == np.mean([abs(value) >= abs(sum(steps)) for value in sums]) == 0.875
    # Sums of thirds and fourths: (-6 + 2 - 2) / 3 + (4 - 4 + 5 + 3) / 4 is 0, and every flip is at least as far from it.
    study = findings(
        entry("a", "t", [0.58, 0.764, 0.148, None]),
        entry("b", "t", [0.592, 0.76, 0.152, None]),
        entry("a", "u", [0.584, 0.738, 0.904, 0.532]),
        entry("b", "u", [0.576, 0.746, 0.894, 0.526]),
    )
    assert compare(study, "a", "b").p == 1.0
    equal = findings(entry("a", "t", [0.3, 0.91, 0.55]), entry("b", "t", [0.29, 0.9, 0.54])).entries
    alike = compare(findings(*equal), "a", "b").tasks["t"]
    assert (alike.low, alike.mean, alike.high) == (1.0, 1.0, 1.0)


def test_many_pairs_are_flipped_at_random_and_alike_each_time() -> None:
    generator = np.random.default_rng(3)
    scores = (0.5 + generator.normal(0.004, 0.01, 20)).tolist()
    study = findings(entry("a", "t", scores), entry("b", "t", [0.5] * 20))
    p = compare(study, "a", "b").p
    assert p is not None
    assert p == compare(study, "a", "b").p
    # By all of the 2^20 flips.
    signs = 1 - 2 * ((np.arange(2**20)[:, None] >> np.arange(20)) & 1)
    values = np.asarray(scores) - 0.5
    assert p == pytest.approx(np.mean(np.abs(signs @ values) >= abs(values.sum()) - 1e-12), abs=0.02)


def test_what_is_missing_is_said_by_name() -> None:
    rows = [entry("a", "t", [0.5, None, 0.6]), entry("b", "t", [None, 0.5, 0.6]), entry("a", "u", [0.1] * 3), entry("c", "v", [0.1] * 3)]
    found = compare(findings(*rows), "a", "b")
    assert found.missing == (
        "t: a did not come to its end with seed 1",
        "t: b did not come to its end with seed 0",
        "u: b is not there",
        "v: a and b are not there",
    )
    assert found.tasks["t"].count == 1
    assert found.tasks["t"].low is None
    assert found.p == 1.0
    assert compare(findings(*rows), "b", "c").overall is None
    with pytest.raises(DataError, match=r"no contestant 'd'.* It has a, b, c\."):
        compare(findings(*rows), "a", "d")


def test_several_p_values_are_corrected_as_in_an_example_by_hand() -> None:
    # Times 4, 3, 2 and 1, and none below the one before.
    found = holm({"a": 0.01, "b": 0.02, "c": 0.022, "d": 0.3})
    assert found == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.3})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}
