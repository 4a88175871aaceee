"""A study's statistics against computations of their own."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats  # type: ignore[import-untyped, unused-ignore]

from paring.core.errors import DataError
from paring.study.statistics import Best, best, compare, holm, spread
from tests.study.samples import PERPLEXITY, entry, findings, one_seed, usual


def test_differences_are_paired_and_told_in_points() -> None:
    study = findings(entry("a", "t", [0.90, 0.70, 0.80]), entry("b", "t", [0.89, 0.68, 0.77]))
    found = compare(study, "a", "b")
    task = found.tasks["t"]
    assert task.mean == pytest.approx(2.0)
    # Differences of 1, 2 and 3: s = 1, and t with two degrees of freedom is 4.3027 at 97.5%.
    assert (task.low, task.high) == pytest.approx((2.0 - 4.3027 / 3**0.5, 2.0 + 4.3027 / 3**0.5), abs=1e-4)
    back = compare(study, "b", "a").tasks["t"]
    assert (task.low, task.high) == pytest.approx((-(back.high or 0), -(back.low or 0)))
    # All three have the sign: of the 8 ways to flip, two are as far from zero.
    assert found.p == pytest.approx(2 / 8)


def test_the_sign_flip_test_is_that_of_all_flips() -> None:
    first, second = [0.5, 0.1, -0.2, 0.4], [0.3, 0.6]
    study = findings(
        entry("a", "t", [0.5 + value / 100 for value in first]),
        entry("b", "t", [0.5] * 4),
        entry("a", "u", [0.5 + value / 100 for value in second] * 2),
        entry("b", "u", [0.5] * 4),
    )
    parts = [value / 4 for value in [*first, *second, *second]]
    sums = [abs(sum(sign * part for sign, part in zip(signs, parts, strict=True))) for signs in itertools.product((1, -1), repeat=8)]
    found = compare(study, "a", "b")
    assert found.p == pytest.approx(np.mean([value >= sums[0] - 1e-9 for value in sums]))
    assert found.overall is not None
    assert found.overall.mean == pytest.approx((0.2 + 0.45) / 2)


def test_each_task_counts_alike_and_has_a_variance_of_its_own() -> None:
    study = findings(
        entry("a", "t", [0.52, 0.50, 0.51]), entry("b", "t", [0.5] * 3), entry("a", "u", [0.47, 0.5, 0.53]), entry("b", "u", [0.5] * 3)
    )
    found = compare(study, "a", "b").overall
    assert found is not None
    assert (found.mean, found.count) == (pytest.approx(0.5), 6)
    # Variances 1 and 9 of three each: (1/3 + 3) / 2^2, with (1/3 + 3)^2 / ((1/3)^2 / 2 + 3^2 / 2) = 2.439 degrees of freedom.
    half = scipy.stats.t.ppf(0.975, 100 / 41) * math.sqrt(10 / 3) / 2
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half))


def test_tasks_that_vary_alike_are_pooled_as_scipy_does_it() -> None:
    # The mean of two means is half the difference of one to the negative of the other, which Welch's test has an interval of.
    one, other = [0.01, 0.04, 0.02, 0.03], [0.05, 0.01, -0.02, 0.02]
    rows = [entry("a", task, [0.5 + value for value in values]) for task, values in (("t", one), ("u", other))]
    rows += [entry("b", task, [0.5] * 4) for task in "tu"]
    found = compare(findings(*rows), "a", "b").overall
    assert found is not None
    wanted = scipy.stats.ttest_ind(100 * np.array(one), -100 * np.array(other), equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((wanted.low / 2, wanted.high / 2))


def test_an_interval_is_that_of_the_t_test() -> None:
    values = [1.0, 2.5, 0.5, 4.0]
    wanted = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    found = spread(values)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_values_that_do_not_differ_have_no_interval() -> None:
    for values in ([1.0], [2.0, 2.0], [0.1, 0.1, 0.1]):
        alone = spread(values)
        assert (alone.mean, alone.low, alone.high) == (pytest.approx(values[0]), None, None)
    found = compare(one_seed(), "LoRA", "SoRA")
    assert found.overall is not None
    assert found.overall.low is None


def test_names_are_told_apart_by_the_t_test_of_all_pairs_with_the_correction_of_holm() -> None:
    scores = {"a": [0.90, 0.92, 0.91, 0.93], "b": [0.895, 0.921, 0.902, 0.934], "c": [0.80, 0.83, 0.81, 0.82]}
    found = best(findings(*(entry(name, "t", values) for name, values in scores.items())), "t")
    pairs = {first + other: scipy.stats.ttest_rel(scores[first], scores[other]).pvalue for first, other in ("ab", "ac", "bc")}
    corrected = holm(pairs)
    assert corrected["ab"] > 0.05 > corrected["ac"] > pairs["ac"]
    assert found == Best(name="a", alike=frozenset("b"), apart=frozenset("c"))
    # A p value that alone would do is not enough among many.
    narrow = {"a": [0.53, 0.54, 0.52], "b": [0.5, 0.505, 0.503]}
    assert scipy.stats.ttest_rel(narrow["a"], narrow["b"]).pvalue < 0.05
    pair = [entry(name, "t", values) for name, values in narrow.items()]
    alone = best(findings(*pair), "t")
    assert alone is not None
    assert alone.apart == {"b"}
    others = [entry(name, "t", [0.1 * place, 0.2, 0.3]) for place, name in enumerate("cdef")]
    among = best(findings(*pair, *others), "t")
    assert among is not None
    assert "b" in among.alike


def test_equal_differences_are_as_certain_as_their_signs() -> None:
    # A coarse metric can show the same difference three times; t would be certain of it, three signs are not.
    for count, told in ((3, False), (7, True)):
        rows = [entry("a", "t", [0.5 + seed / 100 for seed in range(count)]), entry("b", "t", [0.49 + seed / 100 for seed in range(count)])]
        found = best(findings(*rows), "t")
        assert found is not None
        assert ("b" in found.apart) is told, count
    assert best(one_seed(), "trec") == Best(name="SoRA", alike=frozenset({"LoRA"}), apart=frozenset())


def test_survivors_are_not_the_best_and_have_no_mean_over_tasks() -> None:
    rows = [entry("A", task, [0.99, None, None, None, None]) for task in ("easy", "hard")]
    rows += [
        entry(name, task, [0.8 + 0.01 * seed + low for seed in range(5)])
        for name, low in (("B", 0.0), ("C", -0.1))
        for task in ("easy", "hard")
    ]
    rows += [entry("S", "easy", [0.82 + 0.0101 * seed for seed in range(5)]), entry("S", "hard", [None] * 5)]
    study = findings(*rows)
    for task, name in (("easy", "S"), ("hard", "B")):
        top = best(study, task)
        assert top is not None
        assert top.name == name
        assert "A" not in {top.name, *top.alike, *top.apart}
    found = compare(study, "S", "B")
    assert (found.overall, found.p) == (None, None)
    assert (set(found.tasks), found.tasks["easy"].count) == ({"easy"}, 5)
    assert found.missing == ("hard: S did not come to its end with seeds 0, 1, 2, 3, 4",)
    partly = compare(study, "A", "B")
    assert (partly.overall, partly.p, partly.tasks["hard"].count) == (None, None, 1)
    assert best(findings(entry("A", "t", [0.9, None])), "t") is None


def test_smaller_may_be_better() -> None:
    study = findings(entry("low", "notes", [10.0]), entry("high", "notes", [12.0]), metrics={"notes": PERPLEXITY})
    assert compare(study, "low", "high").tasks["notes"].mean == 2.0
    assert compare(study, "high", "low").tasks["notes"].mean == -2.0
    assert best(study, "notes") == Best(name="low", alike=frozenset({"high"}), apart=frozenset())


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
    # Sums of fourths: -6 + 2 - 2 - 2 + 4 - 4 + 5 + 3 is 0, and every flip is at least as far from it.
    study = findings(
        entry("a", "t", [0.58, 0.764, 0.148, 0.314]),
        entry("b", "t", [0.592, 0.76, 0.152, 0.318]),
        entry("a", "u", [0.584, 0.738, 0.904, 0.532]),
        entry("b", "u", [0.576, 0.746, 0.894, 0.526]),
    )
    assert compare(study, "a", "b").p == 1.0
    equal = findings(entry("a", "t", [0.3, 0.91, 0.55]), entry("b", "t", [0.29, 0.9, 0.54])).entries
    alike = compare(findings(*equal), "a", "b").tasks["t"]
    assert (alike.low, alike.mean, alike.high) == (None, 1.0, None)


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
    assert found.p is None
    assert compare(findings(*rows), "b", "c").overall is None
    with pytest.raises(DataError, match=r"no contestant 'd'.* It has a, b, c\."):
        compare(findings(*rows), "a", "d")


def test_several_p_values_are_corrected_as_in_an_example_by_hand() -> None:
    # Times 4, 3, 2 and 1, and none below the one before.
    found = holm({"a": 0.01, "b": 0.02, "c": 0.022, "d": 0.3})
    assert found == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.3})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}
