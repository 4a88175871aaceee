"""The lists of penalties: their ends, their spacing, their refusals."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from paring.core.errors import SettingError
from paring.core.schedules import Spacing, penalty_list

SPACINGS: list[Spacing] = ["linear", "log_linear", "exp_linear"]


def test_the_list_of_the_authors_script() -> None:
    values = penalty_list(0, 7e-4, 7)
    assert len(values) == 7
    assert values[0] == 0
    assert values[-1] == 7e-4
    assert [b - a for a, b in itertools.pairwise(values)] == pytest.approx([1.1667e-4] * 6, rel=1e-4)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("low", "high"), [(1e-4, 7e-4), (0.1, 0.3), (0.1, 3.0)])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_ends_are_exact_and_values_ascend(spacing: Spacing, low: float, high: float, count: int) -> None:
    values = penalty_list(low, high, count, spacing)
    assert len(values) == count
    assert (values[0], values[-1]) == (low, high)
    assert all(a < b for a, b in itertools.pairwise(values))


def test_spacings_by_their_formulas() -> None:
    low, high, count = 0.1, 3.0, 6
    grid = [i / (count - 1) for i in range(count)]
    linear = [low + (high - low) * x for x in grid]
    log_linear = [math.log(math.exp(low) + (math.exp(high) - math.exp(low)) * x) for x in grid]
    exp_linear = [low * (high / low) ** x for x in grid]
    assert penalty_list(low, high, count, "linear") == pytest.approx(linear)
    assert penalty_list(low, high, count, "log_linear") == pytest.approx(log_linear)
    assert penalty_list(low, high, count, "exp_linear") == pytest.approx(exp_linear)
    # The middle of the three lies in this order: the exponential is convex, the logarithm concave.
    assert exp_linear[2] < linear[2] < log_linear[2]


def test_small_penalties_keep_their_digits_in_log_linear() -> None:
    # exp and log would round 1e-12 away; there the list is the linear one.
    assert penalty_list(0, 1e-12, 5, "log_linear") == pytest.approx(penalty_list(0, 1e-12, 5), rel=1e-9, abs=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0.0, 1.0, 1), "count=1"),
        ((0.0, 1.0, 0), "count=0"),
        ((1.0, 1.0, 3), "ascend"),
        ((2.0, 1.0, 3), "ascend"),
        ((-0.1, 1.0, 3), "low=-0.1"),
        ((0.0, math.inf, 3), "finite"),
        ((math.nan, 1.0, 3), "finite"),
        ((0.0, 1.0, 3, "exp_linear"), "low=0"),
        ((0.0, 1e3, 3, "log_linear"), "overflows"),
    ],
)
def test_refusals(arguments: Any, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        penalty_list(*arguments)


def test_an_unknown_spacing_is_refused(unchecked: None) -> None:
    with pytest.raises(SettingError, match="'cubic'"):
        penalty_list(0.0, 1.0, 3, "cubic")  # type: ignore[arg-type]
